//! A container image made by hand: no registry can be reached from a test, and none is needed.
//!
//! It holds one program, busybox, which is what sleeps in a sandbox and what a container runs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Name of the image.
pub(crate) const NAME: &str = "margay.test/busybox:1";
/// Where machines have busybox.
const PLACES: [&str; 4] =
    ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox", "/usr/sbin/busybox"];

/// Writes the image to `path`, as an archive in the layout of the Open Container Initiative's image
/// specification.
pub(crate) fn write(path: &Path) -> io::Result<()> {
    let layer = layer()?;
    let config = json!({
        "architecture": go_architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string();

    let mut archive = Builder::new(File::create(path)?);
    add_file(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion": "1.0.0"}"#)?;
    add_file(&mut archive, "index.json", 0o644, index.as_bytes())?;
    for blob in [&config, &manifest, &layer] {
        add_file(&mut archive, &digest(blob).replace("sha256:", "blobs/sha256/"), 0o644, blob)?;
    }
    archive.into_inner()?.sync_all()
}

/// Writes what is in the image, and nothing about it, to `path`.
pub(crate) fn write_layer(path: &Path) -> io::Result<()> {
    fs::write(path, layer()?)
}

/// The image's one layer, an archive itself.
fn layer() -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for folder in ["bin/", "etc/", "tmp/"] {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        layer.append_data(&mut header, folder, io::empty())?;
    }
    let busybox = PLACES.map(Path::new).into_iter().find(|place| place.is_file());
    let busybox = busybox.expect("no busybox: `cargo xtask setup` installs it");
    add_file(&mut layer, "bin/busybox", 0o755, &fs::read(busybox)?)?;
    for library in libraries(busybox)? {
        let name = library.strip_prefix("/").expect("an absolute path").to_str().expect("UTF-8");
        add_file(&mut layer, name, 0o755, &fs::read(&library)?)?;
    }
    layer.into_inner()
}

/// What the dynamic linker would load with a program; nothing for a static one.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let printed = Command::new("ldd").arg(program).output()?.stdout;
    let printed = String::from_utf8_lossy(&printed);
    Ok(printed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn add_file(
    archive: &mut Builder<impl io::Write>,
    name: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture in the words of image configurations.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_comes_with_its_libraries() {
        let test = std::env::current_exe().expect("path of the running test");

        let libraries = libraries(&test).expect("libraries");

        let is_libc = |path: &PathBuf| path.to_string_lossy().contains("/libc.so");
        assert!(libraries.iter().any(is_libc), "{libraries:?}");
        assert!(libraries.iter().all(|path| path.is_file()), "{libraries:?}");
    }
}
