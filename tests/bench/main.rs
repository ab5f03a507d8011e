//! `bench`: the rows of margay's table of measurements, taken on margay and its peers side by side.
//!
//! A row is one file in `rows/` with one function: it lets the peers take turns, each on a node of
//! its own, and writes what it saw and the goals into its sheet. Everything else is the same for all
//! rows: `target/bench/<row>.json`, the charts, the page.
#![deny(unsafe_code)]

mod chart;
mod execution;
mod machine;
mod page;
mod peer;
mod processors;
mod redirect;
mod rows;
mod sheet;
mod statistics;
mod traffic;
mod turns;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::machine::Machine;
use crate::rows::{ROWS, Row};
use crate::sheet::Sheet;

const USAGE: &str = "bench [NAME…] [--quick] [--large] [--list] [--report] [--out DIR]";
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Few samples: for development, and to see that a row works.
    pub(crate) quick: bool,
    /// Go as far as a big machine bears it.
    pub(crate) large: bool,
}

impl Effort {
    /// `full` samples, or a few.
    pub(crate) fn samples(self, full: usize) -> usize {
        if self.quick { full.min(3) } else { full }
    }
}

struct Arguments {
    names: Vec<String>,
    effort: Effort,
    list: bool,
    report: bool,
    out: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(execution::LAUNCH) => execution::launch(std::env::args().skip(2)),
        _ => Arguments::parse(std::env::args().skip(1)).and_then(|arguments| bench(&arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            names: Vec::new(),
            effort: Effort { quick: false, large: false },
            list: false,
            report: false,
            out: PathBuf::new(),
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => parsed.effort.quick = true,
                "--large" => parsed.effort.large = true,
                "--list" => parsed.list = true,
                "--report" => parsed.report = true,
                "--out" => parsed.out = words.next().context("--out without a directory")?.into(),
                option if option.starts_with('-') => bail!("unknown option {option}; {USAGE}"),
                name => parsed.names.push(name.to_owned()),
            }
        }
        if parsed.out.as_os_str().is_empty() {
            let folder = if parsed.effort.quick { "target/bench/quick" } else { "target/bench" };
            parsed.out = Path::new(WORKSPACE).join(folder);
        }
        Ok(parsed)
    }

    /// The rows that were named; without a name, all of them.
    fn rows(&self) -> Result<Vec<&'static Row>> {
        if self.names.is_empty() {
            return Ok(ROWS.iter().collect());
        }
        let row = |name: &String| {
            let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
            let row = ROWS.iter().find(|row| row.name == name);
            row.with_context(|| format!("no row {name}; there are {}", known()))
        };
        self.names.iter().map(row).collect()
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for row in ROWS {
            println!("{:<10} {}", row.name, row.title);
        }
        return Ok(());
    }
    if arguments.report {
        return publish(&arguments.out);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "the rows make network namespaces: run it as root"
    );
    fs::create_dir_all(&arguments.out)?;
    let rows = arguments.rows()?;
    let mut sheets = Vec::new();
    for row in &rows {
        let sheet = measure(row, arguments.effort)?;
        let file = arguments.out.join(format!("{}.json", row.name));
        fs::write(&file, serde_json::to_string_pretty(&sheet)?)
            .with_context(|| format!("write {}", file.display()))?;
        sheets.push(sheet);
    }
    print!("{}", page::goals(&sheets));
    if arguments.names.is_empty() && !arguments.effort.quick {
        return publish(&arguments.out);
    }
    page::write(&sheets, &arguments.out.join("benchmarks.md"), &arguments.out.join("benchmarks"))
}

fn measure(row: &Row, effort: Effort) -> Result<Sheet> {
    eprintln!("{}: {}", row.name, row.title);
    let mut sheet = Sheet::new(row, effort, Machine::look());
    let started = Instant::now();
    (row.run)(effort, &mut sheet).with_context(|| format!("row {}", row.name))?;
    sheet.seconds = started.elapsed().as_secs_f64().round();
    eprintln!("{}: {} s", row.name, sheet.seconds);
    Ok(sheet)
}

/// Makes `docs/benchmarks.md` and its charts from the newest measurement of every row.
fn publish(out: &Path) -> Result<()> {
    let file_of = |row: &Row| out.join(format!("{}.json", row.name));
    let (measured, missing): (Vec<_>, Vec<_>) = ROWS.iter().partition(|row| file_of(row).exists());
    for row in missing {
        eprintln!("{} is not on the page: measure it with `cargo xtask bench {0}`", row.name);
    }
    let read = |row: &Row| -> Result<Sheet> {
        let file = file_of(row);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let sheet: Sheet = serde_json::from_str(&text)
            .with_context(|| format!("{} is of another version of bench", file.display()))?;
        ensure!(!sheet.quick, "{} is of a quick run", file.display());
        Ok(sheet)
    };
    let sheets = measured.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let docs = Path::new(WORKSPACE).join("docs");
    page::write(&sheets, &docs.join("benchmarks.md"), &docs.join("benchmarks"))?;
    println!("wrote docs/benchmarks.md");
    Ok(())
}
