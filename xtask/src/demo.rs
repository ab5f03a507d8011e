//! `cargo xtask demo`: builds everything and runs the demo of the test package.

use std::ffi::OsString;

use anyhow::Result;

use crate::setup::{self, Use};
use crate::workspace::{self, run as run_command};
use crate::{bpftool, build, build_ebpf};

/// Show two pods that talk to each other through the TC programs.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Arguments of the demo itself
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build, Use::Demo])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    println!("demo: building the plugins and the demo");
    build::debug_plugins(&[])?;
    let mut demo = workspace::cargo_command("run");
    demo.args(["--quiet", "--package", "margay-tests", "--bin", "demo", "--"]);
    bpftool::put_in_path(&mut demo)?;
    run_command(demo.args(&arguments.arguments))
}
