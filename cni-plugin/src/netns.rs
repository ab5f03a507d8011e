//! A pod's network namespace: opened by path, compared with our own, entered by a thread of its
//! own.
//!
//! Invariant: the thread that calls [`Netns::run`] never changes its namespace, so no error path
//! can leave the process in the wrong one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system that namespace files live on.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path does not lead to a file.
    #[error("open network namespace {path:?}")]
    Open {
        /// The path asked for.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is a file, but it is not a namespace.
    #[error("{path:?} is not a network namespace")]
    NotANamespace {
        /// The path asked for.
        path: PathBuf,
    },
    /// A system call on the open namespace failed.
    #[error("{operation} network namespace {path:?}")]
    Use {
        /// What was tried.
        operation: &'static str,
        /// The path asked for.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An open network namespace. Holding it keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at `path`, such as `/var/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is no file, or it is not on the kernel's namespace file system.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let open_error = |source: rustix::io::Errno| NetnsError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        // O_NONBLOCK: a FIFO at this path must not hang the runtime.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(open_error)?;
        let file_system = rustix::fs::fstatfs(&fd).map_err(open_error)?;
        if file_system.f_type != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same namespace, by whatever paths they were opened.
    ///
    /// # Errors
    /// When one of them cannot be looked at.
    pub fn is_same_as(&self, other: &Self) -> Result<bool, NetnsError> {
        let mine = self.stat()?;
        let theirs = other.stat()?;
        Ok((mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino))
    }

    /// Its inode, which no two namespaces have that live at the same time.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        Ok(self.stat()?.st_ino)
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. Sockets and
    /// `/proc/sys` files that it opens belong to the namespace.
    ///
    /// # Errors
    /// When no thread can be started, or it cannot enter: not a network namespace, or no right to.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    let network = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(self.fd.as_fd(), network)?;
                    Ok(work())
                })
                .map_err(|source| self.failed("start a thread for", source))?;
            match worker.join() {
                Ok(outcome) => {
                    outcome.map_err(|errno: rustix::io::Errno| self.failed("enter", errno.into()))
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn stat(&self) -> Result<rustix::fs::Stat, NetnsError> {
        rustix::fs::fstat(&self.fd).map_err(|errno| self.failed("look at", errno.into()))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> NetnsError {
        NetnsError::Use { operation, path: self.path.clone(), source }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_is_the_same_as_itself() {
        let ours = Netns::current().unwrap();
        let again = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(ours.is_same_as(&again).unwrap());
    }

    #[test]
    fn a_missing_path_cannot_be_opened() {
        let error = Netns::open(Path::new("/nonexistent/netns")).unwrap_err();
        assert!(matches!(error, NetnsError::Open { .. }), "{error:?}");
    }

    #[test]
    fn a_regular_file_is_not_a_namespace() {
        let error = Netns::open(Path::new("/proc/version")).unwrap_err();
        assert!(matches!(error, NetnsError::NotANamespace { .. }), "{error:?}");
    }
}
