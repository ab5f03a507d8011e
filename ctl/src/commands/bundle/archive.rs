//! The archive: text files in a folder, compressed, for nobody's eyes but its maker's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tar::{Builder, Header};

use super::secrets::Secrets;

/// An archive in the making.
pub(super) struct Archive {
    tar: Builder<GzEncoder<File>>,
    folder: String,
    secrets: Secrets,
    time: u64,
}

impl Archive {
    /// A new file, which only its owner can read. One that is there stays.
    pub(super) fn create(
        path: &Path,
        folder: &str,
        time: u64,
        secrets: Secrets,
    ) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let tar = Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Self { tar, folder: folder.to_owned(), secrets, time })
    }

    /// Puts a text in, without secrets.
    pub(super) fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let clean = self.secrets.removed_from_lines(text);
        self.put(name, &clean)
    }

    /// The same with a document.
    pub(super) fn json(&mut self, name: &str, document: &impl Serialize) -> io::Result<()> {
        // Out of its values: a number that is one would leave what is no document.
        let document = self.secrets.removed_from_document(serde_json::to_value(document)?);
        let mut text = serde_json::to_string_pretty(&document)?;
        text.push('\n');
        self.put(name, &text)
    }

    /// Writes the rest, to the disk.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.finish()?.sync_all()
    }

    fn put(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{name}", self.folder);
        self.tar.append_data(&mut header, path, text.as_bytes())
    }
}
