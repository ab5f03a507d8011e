//! A packet's life, as it is shown.

use std::fmt;

use serde::Serialize;

use super::words::Verdict;
use crate::output::{BAD, BOLD, DIM, GOOD, Report, WARNING, printable};

/// What `trace` shows.
#[derive(Debug, Serialize)]
pub(super) struct Trace {
    pub(super) packet: Packet,
    /// Which build's programs were rehearsed.
    pub(super) build: &'static str,
    pub(super) steps: Vec<Step>,
    pub(super) outcome: Outcome,
}

/// The packet that was asked about.
#[derive(Debug, Serialize)]
pub(super) struct Packet {
    pub(super) summary: String,
    /// From its IP header on.
    pub(super) length: usize,
    /// In hexadecimal, from its Ethernet header on.
    pub(super) frame: String,
}

/// A place that the packet comes to.
#[derive(Debug, Serialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub(super) enum Step {
    Program(ProgramStep),
    Stack(StackStep),
}

/// One of margay's programs.
#[derive(Debug, Serialize)]
pub(super) struct ProgramStep {
    pub(super) hook: &'static str,
    pub(super) interface: String,
    pub(super) attached: Attached,
    pub(super) lookups: Vec<Lookup>,
    /// Name of the counter that goes up.
    pub(super) counter: Option<&'static str>,
    pub(super) verdict: Verdict,
    pub(super) meaning: String,
    pub(super) changes: Vec<Change>,
    /// What the flow becomes, if it becomes something else.
    pub(super) learned: Option<String>,
    pub(super) notes: Vec<String>,
}

/// Whose program is at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Attached {
    /// That of the build that was rehearsed.
    ThisBuild,
    /// That of another build.
    OtherBuild,
    /// None.
    Nothing,
}

/// What was asked of a map, and what it said.
#[derive(Debug, Serialize)]
pub(super) struct Lookup {
    pub(super) map: &'static str,
    pub(super) key: String,
    pub(super) found: Option<String>,
}

/// What is rewritten.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) field: &'static str,
    pub(super) before: String,
    pub(super) after: String,
}

/// The host's own stack.
#[derive(Debug, Serialize)]
pub(super) struct StackStep {
    pub(super) meaning: String,
    pub(super) route: Option<Route>,
    pub(super) notes: Vec<String>,
}

/// The kernel's route.
#[derive(Debug, Serialize)]
pub(super) struct Route {
    pub(super) destination: String,
    pub(super) gateway: Option<String>,
    pub(super) interface: Option<String>,
}

/// Where it ends.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) result: Ending,
    pub(super) summary: String,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    /// In a pod.
    Delivered,
    /// Its answer goes back to the sender.
    Answered,
    /// On the way to another node.
    Sent,
    /// On the way outside.
    Left,
    /// In the host's own stack.
    Host,
    /// With an ICMP error, or without a word, in the stack.
    Refused,
    /// Nowhere.
    Dropped,
}

impl Report for Trace {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Packet { summary, length, .. } = &self.packet;
        let summary = printable(summary);
        writeln!(out, "{BOLD}{summary}{BOLD:#}, {length} bytes")?;
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(out)?;
            match step {
                Step::Program(step) => step.write(number, out)?,
                Step::Stack(step) => step.write(number, out)?,
            }
        }
        let style = match self.outcome.result {
            Ending::Delivered | Ending::Answered | Ending::Sent => GOOD,
            Ending::Left | Ending::Host => BOLD,
            Ending::Refused => WARNING,
            Ending::Dropped => BAD,
        };
        writeln!(out, "\n{style}{}{style:#}", printable(&self.outcome.summary))
    }
}

/// In front of what belongs to a step.
const INDENT: &str = "   ";

impl ProgramStep {
    fn write(&self, number: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{number}. {BOLD}{}{BOLD:#} at {}", self.hook, printable(&self.interface))?;
        let keys: Vec<_> =
            self.lookups.iter().map(|it| printable(&format!("{} {}", it.map, it.key))).collect();
        let width = keys.iter().map(String::len).max().unwrap_or(0);
        for (key, lookup) in keys.iter().zip(&self.lookups) {
            match &lookup.found {
                Some(found) => writeln!(out, "{INDENT}{key:width$}  {}", printable(found))?,
                None => writeln!(out, "{INDENT}{key:width$}  {DIM}nothing{DIM:#}")?,
            }
        }
        let style = match self.verdict {
            Verdict::Deliver | Verdict::Answer | Verdict::Send => GOOD,
            Verdict::Stack | Verdict::Pass => BOLD,
            Verdict::Drop => BAD,
        };
        let counter = self.counter.unwrap_or("not counted");
        writeln!(out, "{INDENT}{style}{counter}{style:#}: {}", printable(&self.meaning))?;
        for Change { field, before, after } in &self.changes {
            let (before, after) = (printable(before), printable(after));
            writeln!(out, "{INDENT}{field}: {before} becomes {after}")?;
        }
        if let Some(learned) = &self.learned {
            writeln!(out, "{INDENT}the flow becomes {}, both ways", printable(learned))?;
        }
        write_notes(&self.notes, out)
    }
}

impl StackStep {
    fn write(&self, number: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{number}. {BOLD}the host's stack{BOLD:#}")?;
        if let Some(Route { destination, gateway, interface }) = &self.route {
            let via = gateway.as_ref().map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            let dev = interface.as_ref().map(|dev| format!(" dev {dev}")).unwrap_or_default();
            writeln!(out, "{INDENT}{}", printable(&format!("route {destination}{via}{dev}")))?;
        }
        writeln!(out, "{INDENT}{}", printable(&self.meaning))?;
        write_notes(&self.notes, out)
    }
}

fn write_notes(notes: &[String], out: &mut dyn fmt::Write) -> fmt::Result {
    notes.iter().try_for_each(|note| writeln!(out, "{INDENT}{DIM}{}{DIM:#}", printable(note)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_a_terminal_nothing() {
        let evil = || "a\u{1b}[2J".to_owned();
        let trace = Trace {
            packet: Packet { summary: evil(), length: 1, frame: String::new() },
            build: "this",
            steps: vec![
                Step::Program(ProgramStep {
                    hook: "from_pod",
                    interface: evil(),
                    attached: Attached::Nothing,
                    lookups: vec![Lookup { map: "pods_v4", key: evil(), found: Some(evil()) }],
                    counter: None,
                    verdict: Verdict::Drop,
                    meaning: evil(),
                    changes: vec![Change { field: "source", before: evil(), after: evil() }],
                    learned: Some(evil()),
                    notes: vec![evil()],
                }),
                Step::Stack(StackStep {
                    meaning: evil(),
                    route: Some(Route {
                        destination: evil(),
                        gateway: Some(evil()),
                        interface: Some(evil()),
                    }),
                    notes: vec![evil()],
                }),
            ],
            outcome: Outcome { result: Ending::Dropped, summary: evil() },
        };
        let mut text = String::new();

        trace.write(&mut text).unwrap();

        assert_eq!(text.matches("a[2J").count(), 15, "{text}");
        assert!(!text.contains("\u{1b}[2J"), "{text}");
    }
}
