//! The conformance suite: what the CNI specification says of a plugin, tried on any plugin's binary.
//!
//! Each [`Check`] is named after the sentence it holds the plugin to (or says that there is none)
//! and has a node to itself. It
//! knows the plugin by its answers, by what the kernel says and by the files in its directory;
//! only those in `own` look into margay.
//!
//! Invariant: a plugin never reaches beyond its node's namespaces, as far as its configuration
//! keeps to the node's directory.

mod add;
mod answer;
mod bench;
mod check;
mod del;
mod delegation;
mod environment;
mod gc;
mod own;
mod result;
mod snapshot;
mod status;
mod subject;
pub mod table;
mod version;

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bench::Bench;
pub use subject::{Subject, reference};

/// One thing that the specification says, and how it is tried.
pub struct Check {
    /// What it is about: a verb, mostly.
    pub group: &'static str,
    /// The specification's words.
    pub sentence: &'static str,
    /// What is tried.
    pub case: &'static str,
    run: fn(&Bench<'_>) -> anyhow::Result<()>,
}

/// How a check went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plugin does what the sentence says.
    Pass,
    /// It does not, and why.
    Fail(String),
    /// The sentence is not about this plugin, and why.
    NotApplicable(String),
}

/// A check is not about the plugin at hand; the reason.
#[derive(Debug)]
struct NotApplicable(String);

impl fmt::Display for NotApplicable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for NotApplicable {}

/// Every check, in the order of the table.
#[must_use]
pub fn checks() -> Vec<Check> {
    let groups: [(&'static str, &[Entry]); 10] = [
        ("VERSION", version::CHECKS),
        ("Errors", environment::CHECKS),
        ("Results", result::CHECKS),
        ("ADD", add::CHECKS),
        ("DEL", del::CHECKS),
        ("CHECK", check::CHECKS),
        ("GC", gc::CHECKS),
        ("STATUS", status::CHECKS),
        ("Delegation", delegation::CHECKS),
        ("margay", own::CHECKS),
    ];
    let of_group = |(group, entries): (&'static str, &'static [Entry])| {
        entries.iter().map(move |&(sentence, case, run)| Check { group, sentence, case, run })
    };
    groups.into_iter().flat_map(of_group).collect()
}

/// The specification's words, what is tried, and how.
type Entry = (&'static str, &'static str, fn(&Bench<'_>) -> anyhow::Result<()>);

/// Checks that run at the same time. Most of their time they wait for the kernel.
const WORKERS: usize = 4;

/// Tries every check on a plugin. The outcomes are in the order of the checks.
#[must_use]
pub fn run(subject: &Subject, checks: &[Check]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![None; checks.len()]);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((index, check)) = take(checks, &next) {
                    let outcome = run_one(subject, check);
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    outcomes[index] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().flatten().collect()
}

fn take<'a>(checks: &'a [Check], next: &AtomicUsize) -> Option<(usize, &'a Check)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, checks.get(index)?))
}

/// On a thread of its own, since the thread becomes a node and stays one.
fn run_one(subject: &Subject, check: &Check) -> Outcome {
    let outcome = thread::scope(|scope| scope.spawn(|| (check.run)(&Bench::new(subject)?)).join());
    match outcome {
        Ok(Ok(())) => Outcome::Pass,
        Ok(Err(error)) => match error.downcast_ref::<NotApplicable>() {
            Some(NotApplicable(reason)) => Outcome::NotApplicable(reason.clone()),
            None => Outcome::Fail(one_line(&format!("{error:#}"))),
        },
        Err(panic) => Outcome::Fail(one_line(&panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

/// Longest reason in the table, in characters.
const LONGEST_REASON: usize = 240;

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST_REASON {
        return line;
    }
    line.chars().take(LONGEST_REASON).chain(['…']).collect()
}
