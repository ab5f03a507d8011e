//! Namespaces: the calling thread's own, and named ones kept alive by a bind mount.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use margay::netns::Netns;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a network namespace and a mount namespace of its own. Mounts that it
/// makes from here on vanish with it and with the processes that it started.
pub fn isolate_thread() {
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("make mounts private");
}

/// A network namespace with a path, as a runtime makes it for a sandbox.
#[derive(Debug)]
pub struct NamedNetns {
    path: PathBuf,
    netns: Netns,
}

impl NamedNetns {
    /// Makes a namespace and mounts it at `path`, with its loopback interface up.
    #[must_use]
    pub fn create(path: PathBuf) -> Self {
        File::create(&path).expect("make the mount point of a namespace");
        let mounted = path.clone();
        // A thread of its own: it is in the new namespace until it ends.
        let thread = std::thread::spawn(move || {
            unshare(UnshareFlags::NEWNET);
            mount_bind("/proc/thread-self/ns/net", &mounted).expect("mount a namespace");
            set_loopback_up();
        });
        thread.join().expect("make a namespace");
        let netns = Netns::open(&path).expect("open a namespace");
        Self { path, netns }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("enter a namespace")
    }

    /// Ends the namespace, as a runtime does when a sandbox ends.
    pub fn delete(self) {}
}

/// Takes the path away, and with the value the namespace itself.
impl Drop for NamedNetns {
    fn drop(&mut self) {
        report(unmount(&self.path, UnmountFlags::DETACH).map_err(io::Error::from), &self.path);
        report(fs::remove_file(&self.path), &self.path);
    }
}

/// Says what could not be cleaned up, where a panic could hide the one that ended the test.
pub(crate) fn report(outcome: io::Result<()>, path: &Path) {
    if let Err(error) = outcome {
        eprintln!("{} stays behind: {error}", path.display());
    }
}

/// Sets up the loopback interface of the calling thread's namespace.
pub fn set_loopback_up() {
    crate::node::block_on(async {
        let netlink = margay::netlink::Netlink::open().expect("open netlink");
        netlink.set_link_up(1).await.expect("set lo up");
    });
}

#[expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
fn unshare(flags: UnshareFlags) {
    // SAFETY: CLONE_FILES is not among the flags that the callers pass, so that the table of file
    // descriptors stays shared with every other thread.
    unsafe { unshare_unsafe(flags) }.expect("unshare");
}
