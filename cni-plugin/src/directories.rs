//! Whether the directories that an ADD writes to can be written to. Nothing is written to find out.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use rustix::io::Errno;

/// Least room that counts as some, in bytes: an ADD appends several pages to the datastore's log.
const LEAST_ROOM_BYTES: u64 = 64 << 10;

/// A directory that an ADD could not write to.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct DirectoryError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whether files could be made in a directory, which itself need not exist yet.
///
/// # Errors
/// When it, or the nearest of its parents, is read-only, full or no directory.
pub fn check_writable(directory: &Path) -> Result<(), DirectoryError> {
    let mut existing = directory;
    while !existing.exists() {
        let Some(parent) = existing.parent() else { break };
        existing = parent;
    }
    let failed = |operation, errno: Errno| DirectoryError {
        operation,
        path: existing.to_owned(),
        source: errno.into(),
    };
    if !existing.is_dir() {
        return Err(failed("write to", Errno::NOTDIR));
    }
    access(existing, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| failed("write to", errno))?;
    let room = statvfs(existing).map_err(|errno| failed("look at", errno))?;
    if room.f_bavail.saturating_mul(room.f_frsize) < LEAST_ROOM_BYTES {
        return Err(failed("write to", Errno::NOSPC));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_yet_to_be_made_is_judged_by_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        check_writable(&directory.path().join("a/b")).unwrap();

        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = check_writable(&file.join("b")).unwrap_err();
        assert_eq!(error.to_string(), format!("write to {}", file.display()));
    }
}
