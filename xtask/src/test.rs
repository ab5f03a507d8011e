//! `cargo xtask test`: every test of the workspace, counted.
//!
//! A test that cannot run here (no root, a kernel feature missing) says so in the file named by
//! `MARGAY_SKIP_LOG`, one line of name and reason. It is then a visible, counted skip, never a pass.
//! Where everything must run, `MARGAY_REQUIRE_ALL` makes a skip a failure.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, io};

use anyhow::{Context, Result, bail};

use crate::setup::{self, Use};
use crate::workspace::{self, cargo_command, shown};
use crate::{bpftool, build, build_ebpf};

const SKIP_LOG: &str = "MARGAY_SKIP_LOG";
const REQUIRE_ALL: &str = "MARGAY_REQUIRE_ALL";

/// Run the tests.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the tests of this package
    #[arg(long, short)]
    package: Vec<String>,
    /// Fail where a test is skipped; on where the environment has `CI=true`
    #[arg(long)]
    require_all: bool,
    /// Only the tests whose names contain one of these
    filters: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[Use::Build, Use::Test])?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    build_plugins()?;

    let skips = workspace::root().join("target/skipped-tests");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    let mut command = cargo_command("test");
    command.arg("--no-fail-fast").args(failpoints()?).env(SKIP_LOG, &skips);
    bpftool::put_in_path(&mut command)?;
    if arguments.require_all || env::var_os("CI").is_some_and(|ci| ci == "true") {
        command.env(REQUIRE_ALL, "1");
    }
    if arguments.package.is_empty() {
        command.arg("--workspace");
    }
    command.args(arguments.package.iter().flat_map(|package| ["--package", package]));
    command.arg("--").args(&arguments.filters);

    let (mut counts, succeeded) = run_counted(&mut command)?;
    counts.count_skips(&skips)?;
    report(&counts, succeeded)
}

/// Builds what the tests execute: cargo builds binaries for the tests of their own package only.
pub(crate) fn build_plugins() -> Result<()> {
    let others = ["--package", build::AGENT, "--package", build::CTL];
    build::debug_plugins(&[failpoints()?.as_slice(), &others].concat())
}

/// The feature by which tests make a step of the plugin fail, as arguments of cargo. Empty where
/// the plugin does not have it.
pub(crate) fn failpoints() -> Result<Vec<&'static str>> {
    let manifest = fs::read_to_string(workspace::root().join("cni-plugin/Cargo.toml"))?;
    let has = manifest.lines().any(|line| line.trim_start().starts_with("failpoints ="));
    Ok(if has { vec!["--features", "margay/failpoints"] } else { vec![] })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
    skipped: Vec<String>,
}

impl Counts {
    /// Adds up lines such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add_line(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else { return };
        let result = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for part in result.split(';') {
            let mut words = part.split_whitespace();
            let Some(number) = words.next().and_then(|word| word.parse::<usize>().ok()) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }

    /// The test harness takes a test that was skipped for one that passed.
    fn count_skips(&mut self, file: &Path) -> Result<()> {
        let lines = fs::read_to_string(file)?;
        self.skipped = lines.lines().map(str::to_owned).collect();
        self.passed = self.passed.saturating_sub(self.skipped.len());
        Ok(())
    }
}

/// Shows a command's output as it comes, and counts the results in it.
fn run_counted(command: &mut Command) -> Result<(Counts, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    let stdout = child.stdout.take().context("the child has a stdout")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        counts.add_line(&String::from_utf8_lossy(&line));
        let mut shown = io::stdout().lock();
        shown.write_all(&line)?;
        shown.write_all(b"\n")?;
    }
    Ok((counts, child.wait()?.success()))
}

fn report(counts: &Counts, succeeded: bool) -> Result<()> {
    for skip in &counts.skipped {
        println!("skipped: {skip}");
    }
    let Counts { passed, failed, ignored, skipped } = counts;
    let skipped = skipped.len();
    println!("tests: {passed} passed, {failed} failed, {skipped} skipped, {ignored} ignored");
    if !succeeded || *failed > 0 {
        bail!("the tests failed");
    }
    if *passed == 0 && skipped == 0 {
        bail!("no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_targets_add_up() {
        let mut counts = Counts::default();
        counts.add_line("running 3 tests");
        counts.add_line("test a::test result ... ok");
        counts.add_line(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.01s",
        );
        counts.add_line(
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; \
             finished in 0.01s",
        );
        assert_eq!(counts, Counts { passed: 5, failed: 1, ignored: 1, skipped: vec![] });
    }

    #[test]
    fn a_skipped_test_has_not_passed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "two_pods_ping: not root\n").unwrap();
        let mut counts = Counts { passed: 3, ..Counts::default() };
        counts.count_skips(file.path()).unwrap();
        assert_eq!((counts.passed, counts.skipped.len()), (2, 1));
    }

    #[test]
    fn a_run_without_tests_is_a_failure() {
        assert!(report(&Counts::default(), true).is_err());
        assert!(report(&Counts { passed: 1, ..Counts::default() }, false).is_err());
        assert!(report(&Counts { passed: 1, ..Counts::default() }, true).is_ok());
    }
}
