//! `cargo xtask install` and `uninstall`: what the scripts of the release tarball do, from here.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::dist;
use crate::workspace::{self, run as run_command};

/// Build margay and install it on this machine. Options are those of dist/install.sh.
#[derive(clap::Args)]
pub(crate) struct InstallArguments {
    /// Such as --root DIR, --bin-dir DIR, --conf-dir DIR, --replace-conf
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Uninstall margay from this machine. Options are those of dist/uninstall.sh.
#[derive(clap::Args)]
pub(crate) struct UninstallArguments {
    /// Such as --root DIR, --bin-dir DIR, --conf-dir DIR, --force, --purge
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

pub(crate) fn install(arguments: &InstallArguments) -> Result<()> {
    let folder = dist::stage()?;
    run_command(Command::new(folder.join("install.sh")).args(&arguments.options))
}

pub(crate) fn uninstall(arguments: &UninstallArguments) -> Result<()> {
    let script = workspace::root().join("dist/uninstall.sh");
    run_command(Command::new(script).args(&arguments.options))
}
