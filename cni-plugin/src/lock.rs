//! The lock of an attachment: verbs on one attachment never overlap, those on others run in
//! parallel.
//!
//! A lock is an advisory lock (`flock(2)`) on a file named after the attachment's host veth. The
//! kernel drops it with the process that holds it, however that ends. The file is removed before
//! the lock is let go, so nothing is left of an attachment; whoever waited on the removed file
//! sees that it has no name left, and tries anew.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, unlink};

/// A lock that could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("{operation} lock file {path:?}")]
pub struct LockError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: OwnedFd,
}

impl Lock {
    /// Waits for the lock `name` below `run_dir`.
    ///
    /// # Errors
    /// When the directory or the file cannot be made or locked.
    pub fn take(run_dir: &Path, name: &str) -> Result<Self, LockError> {
        let directory = run_dir.join("lock");
        let path = directory.join(name);
        loop {
            let file = match open(
                &path,
                OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            ) {
                Ok(file) => file,
                Err(rustix::io::Errno::NOENT) => {
                    DirBuilder::new().recursive(true).mode(0o755).create(&directory).map_err(
                        |source| LockError {
                            operation: "make the directory of",
                            path: path.clone(),
                            source,
                        },
                    )?;
                    continue;
                }
                Err(errno) => return Err(failed("open", &path, errno)),
            };
            retry_interrupted(|| flock(&file, FlockOperation::LockExclusive))
                .map_err(|errno| failed("take", &path, errno))?;
            let links = fstat(&file).map_err(|errno| failed("look at", &path, errno))?.st_nlink;
            if links > 0 {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(errno) = unlink(&self.path) {
            tracing::warn!(path = %self.path.display(), %errno, "lock file stays behind");
        }
    }
}

fn retry_interrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

fn failed(operation: &'static str, path: &Path, errno: rustix::io::Errno) -> LockError {
    LockError { operation, path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_and_no_file_is_left() {
        let run_dir = tempfile::tempdir().unwrap();
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = Lock::take(run_dir.path(), "one").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        let left = std::fs::read_dir(run_dir.path().join("lock")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn locks_of_different_names_do_not_exclude_each_other() {
        let run_dir = tempfile::tempdir().unwrap();
        let _one = Lock::take(run_dir.path(), "one").unwrap();
        let _other = Lock::take(run_dir.path(), "other").unwrap();
    }
}
