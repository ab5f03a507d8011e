//! `cargo xtask build`: the kernel half, then the binaries that embed it.

use anyhow::Result;

use crate::build_ebpf;
use crate::setup::{self, Use};
use crate::workspace::{self, run as run_command};

/// What a host installs.
pub(crate) const BINARIES: &[&str] = &["margay", "margay-ipam"];

/// Build the kernel half and the release binaries.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build debug binaries
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;

    let mut command = workspace::cargo_command("build");
    command.args(["--package", "margay", "--bins"]);
    if !arguments.debug {
        command.arg("--release");
    }
    run_command(&mut command)?;

    let folder = workspace::target_folder().join(if arguments.debug { "debug" } else { "release" });
    for binary in BINARIES {
        let path = folder.join(binary);
        println!("built {} ({} bytes)", path.display(), path.metadata()?.len());
    }
    Ok(())
}
