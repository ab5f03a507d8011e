//! What was found.

use std::fmt;

use margay::error::chain;
use serde::Serialize;

use super::catalogue::{self, Gravity, Kind};
use crate::output::{BAD, BOLD, DIM, GOOD, PLAIN, Report, WARNING, printable};

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    #[serde(flatten)]
    pub(crate) kind: &'static Kind,
    /// Names the thing and says how it is.
    pub(crate) finding: String,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn add(&mut self, kind: &'static Kind, finding: impl Into<String>) {
        self.0.push(Finding { kind, finding: finding.into() });
    }

    /// What could not be looked at: that is a finding too, and keeps nothing else from being looked at.
    pub(crate) fn or_note<T, E>(&mut self, what: &str, outcome: Result<T, E>) -> Option<T>
    where
        E: std::error::Error + 'static,
    {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                let text = format!("{what} cannot be looked at: {}", chain(&error));
                self.add(&catalogue::NOT_LOOKED_AT, text);
                None
            }
        }
    }

    /// The grave ones first; of the same gravity as they were found.
    pub(crate) fn into_diagnosis(mut self) -> Diagnosis {
        self.0.sort_by_key(|finding| finding.kind.gravity);
        Diagnosis {
            verdict: Verdict::of(&self.0),
            findings: self.0,
            done: Vec::new(),
            failed: Vec::new(),
        }
    }
}

/// How a node is, by the gravest of what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Nothing was found, or notes alone.
    Healthy,
    /// Warnings.
    Warnings,
    /// Errors.
    Errors,
}

impl Verdict {
    fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.kind.gravity).min() {
            Some(Gravity::Error) => Self::Errors,
            Some(Gravity::Warning) => Self::Warnings,
            Some(Gravity::Note) | None => Self::Healthy,
        }
    }

    /// What the process ends with. Neither 1, which says that the command failed, nor 2, with which
    /// arguments are refused.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Warnings => 10,
            Self::Errors => 20,
        }
    }
}

/// What was found, in order of gravity.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Diagnosis {
    /// In one word.
    pub(crate) verdict: Verdict,
    /// What `--fix` did, each a sentence.
    pub(crate) done: Vec<String>,
    /// What `--fix` could not do.
    pub(crate) failed: Vec<String>,
    /// What was found; with `--fix`, what is left.
    pub(crate) findings: Vec<Finding>,
}

impl Report for Diagnosis {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for done in &self.done {
            writeln!(out, "{GOOD}done{GOOD:#}     {}", printable(done))?;
        }
        for failed in &self.failed {
            writeln!(out, "{BAD}failed{BAD:#}   {}", printable(failed))?;
        }
        if self.findings.is_empty() {
            return writeln!(out, "{GOOD}nothing is wrong{GOOD:#}");
        }
        write_findings(&self.findings, out)
    }
}

/// Each kind once, with all that was found of it.
pub(crate) fn write_findings(findings: &[Finding], out: &mut dyn fmt::Write) -> fmt::Result {
    let mut kinds: Vec<&'static Kind> = Vec::new();
    for finding in findings {
        if !kinds.contains(&finding.kind) {
            kinds.push(finding.kind);
        }
    }
    for kind in kinds {
        let (word, style) = match kind.gravity {
            Gravity::Error => ("error", BAD),
            Gravity::Warning => ("warning", WARNING),
            Gravity::Note => ("note", PLAIN),
        };
        let Kind { id, meaning, remedy, .. } = kind;
        writeln!(out, "{style}{word:<8}{style:#} {BOLD}{id}{BOLD:#}")?;
        for finding in findings.iter().filter(|finding| finding.kind == kind) {
            writeln!(out, "         {}", printable(&finding.finding))?;
        }
        writeln!(out, "         {DIM}{meaning}{DIM:#}")?;
        writeln!(out, "         do: {remedy}")?;
    }
    Ok(())
}
