//! The bpftool that works on this machine.
//!
//! Ubuntu's `bpftool` is a script that looks for the one of the running kernel's package, and fails
//! where that kernel is another; bpftool itself does not mind the kernel's version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::workspace;

/// Folders with one folder per kernel.
const UBUNTU_FOLDERS: &[&str] = &["/usr/lib/linux-tools", "/usr/lib"];

/// The one in `PATH` if it works, else one of Ubuntu's for any kernel.
pub(crate) fn find() -> Option<PathBuf> {
    let in_path = workspace::find_program("bpftool");
    in_path.into_iter().chain(of_any_kernel()).find(|program| works(program))
}

/// Has a command find bpftool by its name.
pub(crate) fn put_in_path(command: &mut Command) -> Result<()> {
    if let Some(bpftool) = find() {
        command.env("PATH", workspace::path_with(&bpftool)?);
    }
    Ok(())
}

fn of_any_kernel() -> impl Iterator<Item = PathBuf> {
    let folders = UBUNTU_FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
    let entries = folders.flatten().flatten().map(|entry| entry.path().join("bpftool"));
    entries.filter(|path| path.to_string_lossy().contains("/linux-tools") && path.is_file())
}

fn works(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_only_fails_does_not_work() {
        assert!(works(Path::new("/bin/true")));
        assert!(!works(Path::new("/bin/false")));
        assert!(!works(Path::new("/nonexistent")));
    }
}
