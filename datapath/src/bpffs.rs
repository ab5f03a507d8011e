//! The BPF file system that pins live on.
//!
//! Invariant: a root that is not on a BPF file system is an error that names it. Mounts nothing
//! but the system's own `/sys/fs/bpf`, and only when that is not one yet.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, StatFs};
use rustix::mount::MountFlags;

/// Where Linux systems have their BPF file system.
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

/// Why there is no usable BPF file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpffsError {
    /// The root is nothing the kernel takes for a path.
    #[error("{root:?} is not a path: it holds a NUL byte")]
    InvalidRoot {
        /// Root of the pins.
        root: PathBuf,
    },
    /// The root is somewhere else.
    #[error("{} is not on a BPF file system: mount one there (`mount -t bpf bpf …`)", root.display())]
    NotBpffs {
        /// Root of the pins.
        root: PathBuf,
    },
    /// The kernel shows no `/sys/fs/bpf` to mount on.
    #[error("{} does not exist: no sysfs, or a kernel without CONFIG_BPF_SYSCALL", path.display())]
    NoMountPoint {
        /// The missing folder.
        path: PathBuf,
    },
    /// Looking at the file system failed.
    #[error("look at the file system of {}", path.display())]
    Inspect {
        /// What was looked at.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// `mount` failed.
    #[error("mount a BPF file system on {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// The file system is read-only, or this process may not write to it.
    #[error("write to {}", path.display())]
    NotWritable {
        /// The nearest existing folder of the root.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
}

/// Makes sure that `root`, which need not exist yet, is on a BPF file system: mounts the system's
/// one on `/sys/fs/bpf` when `root` is below it and nothing is mounted there.
pub fn ensure_bpffs(root: &Path) -> Result<(), BpffsError> {
    let (_, file_system) = nearest(root)?;
    if is_bpffs(&file_system) {
        return Ok(());
    }
    if !root.starts_with(SYSTEM_BPFFS) {
        return Err(BpffsError::NotBpffs { root: root.to_owned() });
    }
    mount_once(Path::new(SYSTEM_BPFFS))
}

/// aya panics on a path that holds a NUL byte, so none may get past here.
pub(crate) fn check_root(root: &Path) -> Result<(), BpffsError> {
    if root.as_os_str().as_bytes().contains(&0) {
        return Err(BpffsError::InvalidRoot { root: root.to_owned() });
    }
    Ok(())
}

/// Whether [`ensure_bpffs`] and pinning below `root` would succeed. Changes nothing.
pub(crate) fn check(root: &Path) -> Result<(), BpffsError> {
    let (existing, file_system) = nearest(root)?;
    if is_bpffs(&file_system) {
        return rustix::fs::access(&existing, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| BpffsError::NotWritable { path: existing, source: errno.into() });
    }
    if !root.starts_with(SYSTEM_BPFFS) {
        return Err(BpffsError::NotBpffs { root: root.to_owned() });
    }
    if !Path::new(SYSTEM_BPFFS).is_dir() {
        return Err(BpffsError::NoMountPoint { path: SYSTEM_BPFFS.into() });
    }
    Ok(())
}

/// Two processes that mount at once would stack two file systems and hide one's pins from the
/// other, so the mount point's own lock is held from the look to the mount. Whoever waited for the
/// lock holds the covered folder open, but looks again by path and sees the new mount.
fn mount_once(mount_point: &Path) -> Result<(), BpffsError> {
    let folder = match File::open(mount_point) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BpffsError::NoMountPoint { path: mount_point.to_owned() });
        }
        other => other.map_err(|source| inspect_error(mount_point, source))?,
    };
    folder.lock().map_err(|source| inspect_error(mount_point, source))?;

    let (_, file_system) = nearest(mount_point)?;
    if is_bpffs(&file_system) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", mount_point, "bpf", flags, Some(c"mode=0700"))
        .map_err(|errno| BpffsError::Mount { path: mount_point.to_owned(), source: errno.into() })
}

/// The nearest existing folder at or above `path`, and its file system.
fn nearest(path: &Path) -> Result<(PathBuf, StatFs), BpffsError> {
    for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
        match rustix::fs::statfs(folder) {
            Ok(file_system) => return Ok((folder.to_owned(), file_system)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(inspect_error(folder, errno.into())),
        }
    }
    Err(BpffsError::NotBpffs { root: path.to_owned() })
}

fn is_bpffs(file_system: &StatFs) -> bool {
    // The field's width and sign differ between architectures; the magic fits 32 bits everywhere.
    file_system.f_type as u32 == libc::BPF_FS_MAGIC as u32
}

fn inspect_error(path: &Path, source: io::Error) -> BpffsError {
    BpffsError::Inspect { path: path.to_owned(), source }
}
