//! Digest of everything the kernel object is built from, so that a stale object is never embedded.
//!
//! `cargo xtask build-ebpf` writes the object and, beside it, the digest of the sources it was
//! built from. Whoever embeds the object compares that digest with the sources of the moment.
//! Invariant: a change that can change the object changes the digest; where this crate cannot tell,
//! it takes the change for one that matters. It must not look at clocks or file times, or the same
//! sources would give two digests in two checkouts.
#![deny(unsafe_code)]

mod lockfile;
mod manifest;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

/// Where the kernel object is, relative to the workspace root.
pub const OBJECT: &str = "target/ebpf/margay.o";

/// Where the digest of the sources of [`OBJECT`] is, relative to the workspace root.
pub const STAMP: &str = "target/ebpf/margay.o.fingerprint";

/// Files and folders that [`sources`] reads, relative to the workspace root: what a build script
/// names in `rerun-if-changed`, together with [`STAMP`].
pub const INPUTS: &[&str] = &[EBPF, RECIPE, MANIFEST, LOCKFILE];

const EBPF: &str = "ebpf";
const MANIFEST: &str = "Cargo.toml";
const LOCKFILE: &str = "Cargo.lock";

/// The builder of the object, which holds the compiler flags.
const RECIPE: &str = "xtask/src/build_ebpf.rs";

const KERNEL_PACKAGE: &str = "margay-ebpf";

/// This crate, which the object does not contain.
const FINGERPRINT: &str = "ebpf/fingerprint";

/// How the object on disk relates to the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The object was built from these sources.
    Fresh,
    /// There is no object, or nothing says what it was built from.
    Missing,
    /// The object was built from other sources.
    Stale,
}

/// Compares the object's stamp with the sources under `workspace_root`.
pub fn status(workspace_root: &Path) -> io::Result<Status> {
    if !workspace_root.join(OBJECT).is_file() {
        return Ok(Status::Missing);
    }
    let stamp = match fs::read_to_string(workspace_root.join(STAMP)) {
        Ok(stamp) => stamp,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Status::Missing),
        Err(error) => return Err(error),
    };
    let fresh = stamp.trim() == sources(workspace_root)?;
    Ok(if fresh { Status::Fresh } else { Status::Stale })
}

/// Hex SHA-256 of what the kernel object depends on: the Rust sources and manifests under `ebpf/`,
/// the recipe in `xtask`, and of the workspace's manifest and lock file what reaches the kernel half.
pub fn sources(workspace_root: &Path) -> io::Result<String> {
    let mut files = vec![PathBuf::from(RECIPE)];
    collect_files(workspace_root, Path::new(EBPF), &mut files)?;
    files.sort();

    let mut digest = Sha256::new();
    for file in files {
        add(&mut digest, &file.to_string_lossy(), &read(workspace_root, &file)?);
    }

    let lockfile = read_text(workspace_root, LOCKFILE)?;
    let Some(locked) = lockfile::reachable(&lockfile, KERNEL_PACKAGE) else {
        let message = format!("{LOCKFILE} has no package {KERNEL_PACKAGE}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    };
    add(&mut digest, LOCKFILE, locked.text().as_bytes());
    let manifest = manifest::relevant(&read_text(workspace_root, MANIFEST)?, &locked.names());
    add(&mut digest, MANIFEST, manifest.as_bytes());

    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Lengths go in as well, so that no two lists of files give the same stream of bytes.
fn add(digest: &mut Sha256, name: &str, content: &[u8]) {
    for part in [name.as_bytes(), content] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
}

fn collect_files(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder)).map_err(|error| naming(folder, error))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if path != Path::new(FINGERPRINT) {
                collect_files(root, &path, files)?;
            }
        } else if path.extension() == Some(OsStr::new("rs")) || path.ends_with("Cargo.toml") {
            files.push(path);
        }
    }
    Ok(())
}

fn read(root: &Path, file: &Path) -> io::Result<Vec<u8>> {
    fs::read(root.join(file)).map_err(|error| naming(file, error))
}

fn read_text(root: &Path, file: &str) -> io::Result<String> {
    fs::read_to_string(root.join(file)).map_err(|error| naming(Path::new(file), error))
}

fn naming(file: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_source_changes_the_digest() {
        let tree = Tree::new("source");
        let before = tree.digest();
        tree.write("ebpf/src/main.rs", "fn main() { loop {} }");
        assert_ne!(before, tree.digest());
    }

    #[test]
    fn a_renamed_source_changes_the_digest() {
        let tree = Tree::new("rename");
        let before = tree.digest();
        fs::rename(tree.0.join("ebpf/src/main.rs"), tree.0.join("ebpf/src/lib.rs")).unwrap();
        assert_ne!(before, tree.digest());
    }

    #[test]
    fn a_changed_recipe_changes_the_digest() {
        let tree = Tree::new("recipe");
        let before = tree.digest();
        tree.write(RECIPE, "const FLAGS: &str = \"-O3\";");
        assert_ne!(before, tree.digest());
    }

    #[test]
    fn what_the_object_does_not_contain_leaves_the_digest_alone() {
        let tree = Tree::new("unrelated");
        let before = tree.digest();
        tree.write("ebpf/README.md", "notes");
        tree.write("ebpf/fingerprint/src/lib.rs", "pub fn f() {}");
        tree.write("cni-plugin/src/lib.rs", "pub fn f() {}");
        tree.write(LOCKFILE, &LOCK.replace("1.2.3", "1.2.4"));
        assert_eq!(before, tree.digest());
    }

    #[test]
    fn a_dependency_of_a_dependency_changes_the_digest() {
        let tree = Tree::new("lock");
        let before = tree.digest();
        tree.write(LOCKFILE, &LOCK.replace("0.9.1", "0.9.2"));
        assert_ne!(before, tree.digest());
    }

    #[test]
    fn the_digest_is_the_same_in_two_places() {
        assert_eq!(Tree::new("here").digest(), Tree::new("there").digest());
    }

    #[test]
    fn a_lock_file_without_the_kernel_half_is_an_error() {
        let tree = Tree::new("no-lock-entry");
        tree.write(LOCKFILE, "version = 4\n");
        assert!(sources(&tree.0).is_err());
    }

    #[test]
    fn the_status_follows_object_stamp_and_sources() {
        let tree = Tree::new("status");
        assert_eq!(status(&tree.0).unwrap(), Status::Missing);
        tree.write(OBJECT, "ELF");
        assert_eq!(status(&tree.0).unwrap(), Status::Missing);
        tree.write(STAMP, &format!("{}\n", tree.digest()));
        assert_eq!(status(&tree.0).unwrap(), Status::Fresh);
        tree.write("ebpf/abi/src/lib.rs", "pub struct Changed;");
        assert_eq!(status(&tree.0).unwrap(), Status::Stale);
    }

    #[test]
    fn this_workspace_has_all_inputs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let digest = sources(&root).unwrap();
        assert_eq!(digest.len(), 64, "{digest}");
    }

    const LOCK: &str = "version = 4

[[package]]
name = \"inner\"
version = \"0.9.1\"

[[package]]
name = \"margay-ebpf\"
version = \"0.1.0\"
dependencies = [
 \"outer\",
]

[[package]]
name = \"outer\"
version = \"0.1.0\"
dependencies = [
 \"inner\",
]

[[package]]
name = \"unrelated\"
version = \"1.2.3\"
";

    /// A small workspace of its own, removed with the value.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let tree = Self(
                std::env::temp_dir()
                    .join(format!("margay-fingerprint-{}-{name}", std::process::id())),
            );
            tree.write("ebpf/Cargo.toml", "[package]\nname = \"margay-ebpf\"\n");
            tree.write("ebpf/src/main.rs", "fn main() {}");
            tree.write("ebpf/abi/src/lib.rs", "pub struct Key;");
            tree.write(RECIPE, "const FLAGS: &str = \"\";");
            tree.write(MANIFEST, "[workspace]\n");
            tree.write(LOCKFILE, LOCK);
            tree
        }

        fn write(&self, file: &str, content: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn digest(&self) -> String {
            sources(&self.0).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
