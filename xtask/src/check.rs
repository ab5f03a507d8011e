//! `cargo xtask check`: all that can be said about the sources without running them.
//!
//! Every step runs, whatever the steps before it found; every lint is an error.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build_ebpf::{PACKAGE as KERNEL_PACKAGE, TARGET_FOLDER as KERNEL_TARGET_FOLDER};
use crate::setup::{self, Use};
use crate::toolchain::Toolchain;
use crate::workspace::{self, cargo_command, run as run_command};

enum Outcome {
    Passed,
    Skipped(&'static str),
}

type Step = fn() -> Result<Outcome>;

const STEPS: &[(&str, Step)] = &[
    ("fmt", fmt),
    ("clippy, host", clippy_host),
    ("clippy, BPF", clippy_bpf),
    ("rustdoc", rustdoc),
    ("shellcheck", shellcheck),
    ("licences, bans, sources", deny),
];

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Use::Build, Use::Check])?;
    let mut summary = Vec::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        println!("check: {name}");
        let started = Instant::now();
        let outcome = match step() {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Err(error) => {
                failed += 1;
                format!("FAILED: {error:#}")
            }
        };
        summary.push(format!("{name:<24} {:5.1} s  {outcome}", started.elapsed().as_secs_f32()));
    }
    for line in &summary {
        println!("check: {line}");
    }
    if failed > 0 {
        bail!("check: {failed} of {} steps failed", STEPS.len());
    }
    Ok(())
}

fn fmt() -> Result<Outcome> {
    passed(cargo_command("fmt").args(["--all", "--check"]))
}

fn clippy_host() -> Result<Outcome> {
    let mut command = cargo_command("clippy");
    command.args(["--quiet", "--workspace", "--all-targets", "--all-features"]);
    passed(command.args(["--", "--deny", "warnings"]))
}

/// With the compiler that builds the kernel half, whose lints stand beside it.
fn clippy_bpf() -> Result<Outcome> {
    let toolchain = Toolchain::find().context("no Rust toolchain can build for BPF")?;
    let clippy = toolchain
        .program("cargo-clippy")
        .with_context(|| format!("{} has no cargo-clippy beside it", toolchain.rustc.display()))?;
    let mut command = Command::new(clippy);
    command.current_dir(workspace::root()).args(["clippy", "--quiet", "--locked"]);
    command.args(["--package", KERNEL_PACKAGE, "--target-dir", KERNEL_TARGET_FOLDER]);
    toolchain.prepare(&mut command);
    passed(command.args(["--", "--deny", "warnings"]))
}

fn rustdoc() -> Result<Outcome> {
    let mut command = cargo_command("doc");
    command.args(["--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    command.arg("--all-features");
    passed(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

/// The installer, which has to work in any shell of a host.
fn shellcheck() -> Result<Outcome> {
    let mut command = Command::new("shellcheck");
    command.current_dir(workspace::root()).args(["--external-sources", "--shell=sh"]);
    passed(command.args(["dist/install.sh", "dist/uninstall.sh", "dist/paths.sh"]))
}

/// Without its advisory database, which would have to be fetched.
fn deny() -> Result<Outcome> {
    if workspace::find_program("cargo-deny").is_none() {
        return Ok(Outcome::Skipped("cargo-deny is not installed"));
    }
    let mut command = cargo_command("deny");
    command.args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    passed(&mut command)
}

fn passed(command: &mut Command) -> Result<Outcome> {
    run_command(command).map(|()| Outcome::Passed)
}
