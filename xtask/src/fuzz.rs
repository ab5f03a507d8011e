//! `cargo xtask fuzz`: searches for inputs that break a promise, target after target.
//!
//! The bodies of the targets are in `fuzz/bodies`, whose test replays the seeds with every run of the
//! tests; this is the search for new inputs, by coverage. What it finds on the way is kept in
//! `fuzz/found`, from where the next run goes on; an input that breaks a promise, in
//! `fuzz/artifacts`. Neither belongs into the repository: a finding becomes a seed in `fuzz/corpus`
//! and a test where the defect was.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Use};
use crate::workspace::{self, cargo_command, shown};

const SEEDS: &str = "fuzz/corpus";
const FOUND: &str = "fuzz/found";

/// Longest input that is tried, in bytes.
const LONGEST: usize = 4_096;
/// Seconds that one input may take: nothing that a runtime waits for.
const SLOWEST: usize = 30;

/// Search for inputs that break a promise.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this target, a folder of `fuzz/corpus`
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut targets = targets()?;
    if let Some(target) = &arguments.target {
        if !targets.contains(target) {
            bail!("there is no target {target}; there are {}", targets.join(", "));
        }
        targets = vec![target.clone()];
    }
    setup::ensure(&[Use::Fuzz])?;
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for target in targets {
        println!("fuzz: {target}, {} s", arguments.seconds);
        let (is_sound, last) = search(&target, arguments.seconds)?;
        let outcome = if is_sound { "ok" } else { "FAILED" };
        summary.push(format!("{target:<12} {outcome:<6} {last}"));
        if !is_sound {
            failed.push(target);
        }
    }
    for line in summary {
        println!("fuzz: {line}");
    }
    if !failed.is_empty() {
        bail!("a promise is broken by the inputs in fuzz/artifacts of: {}", failed.join(", "));
    }
    Ok(())
}

/// Every target has a folder of seeds.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join(SEEDS);
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether no input broke a promise, and libFuzzer's last word on executions and coverage.
///
/// Without a sanitizer, which safe Rust needs least and which only a nightly compiler has; in the
/// development profile, whose arithmetic panics where it overflows.
fn search(target: &str, seconds: u32) -> Result<(bool, String)> {
    let found = workspace::root().join(FOUND).join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = cargo_command("fuzz");
    command.args(["run", "--dev", "--sanitizer", "none", target]);
    command.arg(found).arg(workspace::root().join(SEEDS).join(target)).arg("--");
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={LONGEST}")).arg(format!("-timeout={SLOWEST}"));
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", shown(&command)))?;
    let stderr = child.stderr.take().context("the child has a stderr")?;
    let mut last = String::new();
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if !is_new_input(&line) {
            eprintln!("{line}");
        }
        if line.contains(" cov: ") {
            last = line;
        }
    }
    Ok((child.wait()?.success(), last))
}

/// libFuzzer writes such a line for each of the many inputs that reach something new.
fn is_new_input(line: &str) -> bool {
    line.starts_with('#')
        && ["NEW", "REDUCE"].contains(&line.split_whitespace().nth(1).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds() {
        assert!(targets().unwrap().iter().any(|target| target == "netconf"));
    }

    #[test]
    fn lines_of_progress_are_told_from_what_an_operator_reads() {
        assert!(is_new_input("#31866\tREDUCE cov: 1720 ft: 5198 corp: 413/96Kb"));
        assert!(!is_new_input("#40000\tDONE   cov: 1720 ft: 5198 corp: 413/96Kb"));
        assert!(!is_new_input("thread 'main' panicked"));
    }
}
