//! `cargo xtask conformance`: builds margay and runs the conformance suite of the test package.

use std::path::{self, PathBuf};

use anyhow::Result;

use crate::setup::{self, Use};
use crate::workspace::{self, run as run_command};
use crate::{build, build_ebpf};

/// Hold a CNI plugin to the specification: one, or margay, ptp and bridge side by side.
///
/// Exits by the result of the plugin that is named, else by margay's; the table of all three goes to
/// target/conformance.md.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Try margay, ptp and bridge; what happens without any option
    #[arg(long, conflicts_with_all = ["plugin", "path", "conf"])]
    all: bool,
    /// Name of the plugin's binary
    #[arg(long, requires_all = ["path", "conf"])]
    plugin: Option<String>,
    /// Directory that the plugin and its IPAM plugin are in
    #[arg(long, requires = "plugin")]
    path: Option<PathBuf>,
    /// Its network configuration, in which @DIR@ stands for a directory of each check's own
    #[arg(long, requires = "plugin")]
    conf: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build, Use::Test])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    build::debug_plugins(&[])?;
    let mut suite = workspace::cargo_command("run");
    suite.args(["--quiet", "--package", "margay-tests", "--bin", "conformance", "--"]);
    if let (Some(plugin), Some(path), Some(conf)) =
        (&arguments.plugin, &arguments.path, &arguments.conf)
    {
        suite.args(["--plugin", plugin]);
        suite.arg("--path").arg(path::absolute(path)?);
        suite.arg("--conf").arg(path::absolute(conf)?);
    }
    run_command(&mut suite)
}
