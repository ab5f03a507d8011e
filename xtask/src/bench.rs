//! `cargo xtask bench`: builds what a release has, and runs the measurements of the test package on it.

use std::path::PathBuf;
use std::{fs, io};

use anyhow::Result;

use crate::setup::{self, Use};
use crate::workspace::{self, cargo_command, run as run_command};
use crate::{bpftool, build_ebpf, dist};

/// Measure margay beside ptp, bridge, its own `linux` mode and a bare veth pair.
///
/// Writes target/bench/NAME.json, a page and its charts; a full run of all rows, docs/benchmarks.md.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// List the rows
    #[arg(long)]
    list: bool,
    /// Take few samples, to see that it works
    #[arg(long)]
    quick: bool,
    /// Go further where that takes minutes and much memory
    #[arg(long)]
    large: bool,
    /// Measure nothing, and make docs/benchmarks.md of what was measured last
    #[arg(long, conflicts_with_all = ["quick", "large", "names"])]
    report: bool,
    /// Only these rows
    names: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build, Use::Bench])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    println!("bench: building the plugins and the measurements");
    run_command(cargo_command("build").args([
        "--quiet",
        "--release",
        "--bin",
        "bench",
        "-p",
        "margay-tests",
        "--bin",
        "margay-agent",
        "-p",
        "margay-agent",
    ]))?;
    let mut bench = std::process::Command::new(gather()?);
    for (option, is_set) in [
        ("--list", arguments.list),
        ("--quick", arguments.quick),
        ("--large", arguments.large),
        ("--report", arguments.report),
    ] {
        bench.args(is_set.then_some(option));
    }
    bpftool::put_in_path(&mut bench)?;
    let scratch = scratch()?;
    let outcome = run_command(bench.args(&arguments.names).env("TMPDIR", &scratch));
    fs::remove_dir_all(scratch)?;
    outcome
}

/// An empty folder for what the nodes write. One for all runs: what a run that was killed has left
/// there goes with the next one.
fn scratch() -> Result<PathBuf> {
    let folder = workspace::target_folder().join("bench/tmp");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&folder)?,
    }
    Ok(folder)
}

/// Puts the plugins beside the measurements, which take those that they lie with: the executable that
/// a release has, under both of its names. A dynamic one takes a sixth more time of the processor.
fn gather() -> Result<PathBuf> {
    let folder = workspace::target_folder().join("bench/bin");
    fs::create_dir_all(&folder)?;
    let bench = folder.join("bench");
    fs::copy(workspace::target_folder().join("release/bench"), &bench)?;
    let agent = "margay-agent";
    fs::copy(workspace::target_folder().join("release").join(agent), folder.join(agent))?;
    let executable = dist::executable()?;
    for name in ["margay", "margay-ipam"] {
        fs::copy(&executable, folder.join(name))?;
    }
    Ok(bench)
}
