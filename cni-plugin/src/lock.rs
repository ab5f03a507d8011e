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
        loop {
            if let Some(lock) = Self::attempt(run_dir, name, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock `name` below `run_dir`, unless somebody has it.
    ///
    /// # Errors
    /// When the directory or the file cannot be made or locked.
    pub fn try_take(run_dir: &Path, name: &str) -> Result<Option<Self>, LockError> {
        Self::attempt(run_dir, name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Whether somebody has the lock `name` below `run_dir`. Makes nothing; what cannot be opened, nobody has.
    ///
    /// To see, it has the lock itself for a moment, beside others that look: whoever only tries it just
    /// then leaves the attachment to its next time.
    #[must_use]
    pub fn is_held(run_dir: &Path, name: &str) -> bool {
        let path = directory(run_dir).join(name);
        let Ok(file) = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
            return false;
        };
        let taken = retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockShared));
        taken == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Removes the files of locks that nobody holds: those of processes that were killed.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file cannot be opened or locked.
    pub fn sweep(run_dir: &Path) -> Result<(), LockError> {
        let path = directory(run_dir);
        let unreadable =
            |source| LockError { operation: "list the directory of", path: path.clone(), source };
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(unreadable)?,
        };
        for entry in entries {
            if let Some(name) = entry.map_err(unreadable)?.file_name().to_str() {
                drop(Self::try_take(run_dir, name)?);
            }
        }
        Ok(())
    }

    /// `None` if somebody else has the lock, or had it and removed the file.
    fn attempt(
        run_dir: &Path,
        name: &str,
        operation: FlockOperation,
    ) -> Result<Option<Self>, LockError> {
        let directory = directory(run_dir);
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
            match retry_interrupted(|| flock(&file, operation)) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                taken => taken.map_err(|errno| failed("take", &path, errno))?,
            }
            let links = fstat(&file).map_err(|errno| failed("look at", &path, errno))?.st_nlink;
            return Ok((links > 0).then_some(Self { path, _file: file }));
        }
    }
}

fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("lock")
}

/// Keeps the GC of a delegated IPAM plugin and ADDs apart. That plugin goes by a list alone, so no
/// ADD may be between its answer and the endpoint that puts the attachment on the list.
#[derive(Debug)]
pub struct IpamGate {
    _file: OwnedFd,
}

impl IpamGate {
    /// Waits until no GC is inside; any number of ADDs can be.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn enter(run_dir: &Path) -> Result<Self, LockError> {
        Ok(Self { _file: lock_forever(run_dir, "ipam", FlockOperation::LockShared)? })
    }

    /// Waits until nobody is inside, and keeps everybody out.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn close(run_dir: &Path) -> Result<Self, LockError> {
        Ok(Self { _file: lock_forever(run_dir, "ipam", FlockOperation::LockExclusive)? })
    }
}

/// Lets one plugin at a time look at the node's NAT rules and change them.
#[derive(Debug)]
pub struct NatLock {
    _file: OwnedFd,
}

impl NatLock {
    const NAME: &str = "nat";

    /// Waits for the lock.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        Ok(Self { _file: lock_forever(run_dir, Self::NAME, FlockOperation::LockExclusive)? })
    }

    /// Whether it was ever taken: without, nobody has made any NAT rules.
    #[must_use]
    pub fn was_taken(run_dir: &Path) -> bool {
        run_dir.join(Self::NAME).exists()
    }
}

/// Locks a file that stays: it is one for all networks, so nobody could tell who is last.
fn lock_forever(
    run_dir: &Path,
    name: &str,
    operation: FlockOperation,
) -> Result<OwnedFd, LockError> {
    let path = run_dir.join(name);
    std::fs::create_dir_all(run_dir).map_err(|source| LockError {
        operation: "make the directory of",
        path: path.clone(),
        source,
    })?;
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed("open", &path, errno))?;
    retry_interrupted(|| flock(&file, operation)).map_err(|errno| failed("take", &path, errno))?;
    Ok(file)
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
    fn a_lock_that_somebody_has_is_not_taken_and_its_file_not_swept_away() {
        let run_dir = tempfile::tempdir().unwrap();
        Lock::sweep(run_dir.path()).unwrap();
        let held = Lock::take(run_dir.path(), "held").unwrap();
        std::fs::write(run_dir.path().join("lock/of-a-dead-process"), "").unwrap();

        assert!(Lock::try_take(run_dir.path(), "held").unwrap().is_none());
        assert!(Lock::is_held(run_dir.path(), "held"));
        assert!(!Lock::is_held(run_dir.path(), "of-a-dead-process"));
        assert!(!Lock::is_held(run_dir.path(), "nobodys"));
        Lock::sweep(run_dir.path()).unwrap();

        assert!(held.path.exists());
        assert!(!run_dir.path().join("lock/of-a-dead-process").exists());
        drop(held);
        assert!(Lock::try_take(run_dir.path(), "held").unwrap().is_some());
    }

    #[test]
    fn locks_of_different_names_do_not_exclude_each_other() {
        let run_dir = tempfile::tempdir().unwrap();
        let _one = Lock::take(run_dir.path(), "one").unwrap();
        let _other = Lock::take(run_dir.path(), "other").unwrap();
    }
}
