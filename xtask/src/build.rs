//! `cargo xtask build`: the kernel half, then the executable that embeds it.

use anyhow::Result;

use crate::build_ebpf;
use crate::setup::{self, Use};
use crate::workspace::{self, run as run_command};

/// Build the kernel half and the release executable.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build a debug executable
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;

    let mut command = workspace::cargo_command("build");
    // By another name it is margay-ipam.
    command.args(["--package", "margay", "--bin", "margay"]);
    if !arguments.debug {
        command.arg("--release");
    }
    run_command(&mut command)?;

    let profile = if arguments.debug { "debug" } else { "release" };
    let executable = workspace::target_folder().join(profile).join("margay");
    println!("built {} ({} bytes)", executable.display(), executable.metadata()?.len());
    Ok(())
}

/// Builds the plugins as tests and the demo execute them, with these further arguments of cargo.
pub(crate) fn debug_plugins(further: &[&str]) -> Result<()> {
    let mut build = workspace::cargo_command("build");
    run_command(build.args(["--quiet", "--package", "margay", "--bins"]).args(further))
}
