//! Another plugin as the IPAM, run by the CNI rules: found in `CNI_PATH`, given the same environment
//! and the same bytes on stdin, and believed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rscni_types::types::{CNI_COMMAND, Cmd};
use serde_json::Value;

use super::{IpamError, IpamResult};
use crate::protocol::Call;

/// Most of a plugin's output that an error shows, in characters.
const SHOWN_CHARS: usize = 500;

/// An IPAM plugin that is a process of its own.
pub struct Delegated<'a> {
    /// `ipam.type`.
    pub(super) plugin: &'a str,
    pub(super) call: &'a Call,
}

impl Delegated<'_> {
    pub(super) fn add(&self) -> Result<IpamResult, IpamError> {
        let stdout = self.run(Cmd::Add)?;
        let unreadable =
            |reason: String| IpamError::Result { plugin: self.plugin.to_owned(), reason };
        let document: Value =
            serde_json::from_slice(&stdout).map_err(|error| unreadable(error.to_string()))?;
        let Value::Object(document) = document else {
            return Err(unreadable("not a JSON object".into()));
        };
        IpamResult::from_map(&document).map_err(|error| unreadable(error.to_string()))
    }

    pub(super) fn del(&self) -> Result<(), IpamError> {
        self.run(Cmd::Del).map(drop)
    }

    pub(super) fn check(&self) -> Result<(), IpamError> {
        self.run(Cmd::Check).map(drop)
    }

    pub(super) fn gc(&self) -> Result<(), IpamError> {
        self.run(Cmd::Gc).map(drop)
    }

    pub(super) fn status(&self) -> Result<(), IpamError> {
        self.run(Cmd::Status).map(drop)
    }

    fn run(&self, verb: Cmd) -> Result<Vec<u8>, IpamError> {
        let executable = self.find()?;
        let output = self
            .exchange(&executable, verb)
            .map_err(|source| IpamError::Run { path: executable, source })?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failure(&output)) }
    }

    fn find(&self) -> Result<PathBuf, IpamError> {
        let directories = self.call.path.iter().filter(|path| !path.as_os_str().is_empty());
        directories
            .map(|directory| directory.join(self.plugin))
            .find(|path| path.is_file())
            .ok_or_else(|| IpamError::NotFound {
                plugin: self.plugin.to_owned(),
                path: std::env::join_paths(&self.call.path)
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            })
    }

    /// Stdin is written by a thread of its own: a plugin may write before it has read everything.
    fn exchange(&self, executable: &PathBuf, verb: Cmd) -> std::io::Result<Output> {
        let mut child = Command::new(executable)
            .env(CNI_COMMAND, <&str>::from(verb))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A plugin that does not read its configuration will say what is wrong itself.
                stdin.map(|mut stdin| stdin.write_all(&self.call.stdin))
            });
            child.wait_with_output()
        })
    }

    fn failure(&self, output: &Output) -> IpamError {
        let plugin = self.plugin.to_owned();
        let document = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        let code = document.get("code").and_then(Value::as_u64);
        if let Some(code) = code.and_then(|code| u32::try_from(code).ok()) {
            let text = |key| document.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
            return IpamError::Reported {
                plugin,
                code,
                msg: text("msg"),
                details: text("details"),
            };
        }
        let written = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let output_text: String =
            String::from_utf8_lossy(written).trim().chars().take(SHOWN_CHARS).collect();
        IpamError::Failed { plugin, status: output.status, output: output_text }
    }
}
