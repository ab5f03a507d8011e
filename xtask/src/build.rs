//! `cargo xtask build`: the kernel half, then the executables that embed it.

use anyhow::Result;

use crate::build_ebpf;
use crate::setup::{self, Use};
use crate::workspace::{self, run as run_command};

/// What users get, each of the package of its name: the plugin, which by another name is margay-ipam,
/// the agent, and the operator's command line. Each is built by itself: together, the plugin would have what of tokio only the agent
/// asks for, such as the driver of signals that a runtime of it starts with.
pub(crate) const EXECUTABLES: [&str; 3] = [PLUGIN, AGENT, CTL];
pub(crate) const PLUGIN: &str = "margay";
pub(crate) const AGENT: &str = "margay-agent";
pub(crate) const CTL: &str = "margayctl";

/// Build the kernel half and the release executables.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build debug executables
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;

    let profile = if arguments.debug { "debug" } else { "release" };
    for name in EXECUTABLES {
        let mut command = workspace::cargo_command("build");
        command.args(["--package", name, "--bin", name]);
        if !arguments.debug {
            command.arg("--release");
        }
        run_command(&mut command)?;
        let executable = workspace::target_folder().join(profile).join(name);
        println!("built {} ({} bytes)", executable.display(), executable.metadata()?.len());
    }
    Ok(())
}

/// Builds the plugins as tests and the demo execute them, with these further arguments of cargo.
pub(crate) fn debug_plugins(further: &[&str]) -> Result<()> {
    let mut build = workspace::cargo_command("build");
    run_command(build.args(["--quiet", "--package", "margay", "--bins"]).args(further))
}
