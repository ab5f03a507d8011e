//! The conformance suite as a program: on one plugin, or on margay and two reference plugins side
//! by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use margay_tests::conformance::{self, Outcome, Subject, checks, table};

const USAGE: &str = "conformance [--all | --plugin NAME --path DIR --conf FILE]";
/// Where the page with the table goes when all plugins were tried.
const PAGE: &str = "../target/conformance.md";

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("The suite makes network namespaces: run it as root.");
        return ExitCode::FAILURE;
    }
    match suite() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the plugin that counts passed: the one that was named, else margay.
fn suite() -> Result<bool> {
    let named = named_plugin()?;
    let writes_page = named.is_none();
    let subjects = match named {
        Some(subject) => vec![subject],
        None => conformance::reference()?.into(),
    };
    let checks = checks();
    let columns: Vec<table::Column> = subjects
        .into_iter()
        .map(|subject| {
            eprintln!("{}: {} checks", subject.name(), checks.len());
            let outcomes = conformance::run(&subject, &checks);
            (subject, outcomes)
        })
        .collect();
    print!("{}", table::text(&checks, &columns));
    if writes_page {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        fs::write(&page, table::markdown(&checks, &columns))
            .with_context(|| format!("write {}", page.display()))?;
    }
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Fail(_));
    Ok(!columns[0].1.iter().any(failed))
}

fn named_plugin() -> Result<Option<Subject>> {
    let (mut plugin, mut path, mut conf) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = match option.as_str() {
            "--all" => continue,
            "--plugin" => &mut plugin,
            "--path" => &mut path,
            "--conf" => &mut conf,
            _ => bail!("unknown option {option}; {USAGE}"),
        };
        *value = Some(arguments.next().with_context(|| format!("{option} without a value"))?);
    }
    let (Some(plugin), Some(path), Some(conf)) = (&plugin, &path, &conf) else {
        if plugin.is_some() || path.is_some() || conf.is_some() {
            bail!("a plugin needs all three of its options; {USAGE}");
        }
        return Ok(None);
    };
    let text = fs::read_to_string(conf).with_context(|| format!("read {conf}"))?;
    Ok(Some(Subject::new(plugin, &PathBuf::from(path), &text)?))
}
