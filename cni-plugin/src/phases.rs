//! The phases of a verb: what took how long, in one line at the end.
//!
//! In test builds, where a phase begins is a fail point of its name (see `margay-failpoints`).

use std::fmt::{Display, Write};
use std::io;
use std::time::{Duration, Instant};

use crate::error::{Error, explained};

/// A stopwatch over the phases of one verb.
#[derive(Debug)]
pub struct Phases {
    verb: &'static str,
    subject: String,
    started: Instant,
    current: Option<(&'static str, Instant)>,
    done: Vec<(&'static str, Duration)>,
}

/// A fail point's error.
#[derive(Debug, thiserror::Error)]
#[error("fail point {phase}")]
pub struct Injected {
    /// Name of the phase.
    pub phase: &'static str,
    /// What the test asked for.
    #[source]
    pub source: io::Error,
}

impl Phases {
    /// Starts the watch. `subject` is the attachment, or the network for GC and STATUS.
    #[must_use]
    pub fn start(verb: &'static str, subject: impl Display) -> Self {
        let subject = subject.to_string();
        Self { verb, subject, started: Instant::now(), current: None, done: Vec::new() }
    }

    /// Ends the phase before and begins the next one. An error only in test builds.
    pub fn enter(&mut self, phase: &'static str) -> Result<(), Injected> {
        self.leave();
        self.current = Some((phase, Instant::now()));
        margay_failpoints::phase(phase).map_err(|source| Injected { phase, source })
    }

    /// Ends the verb and writes its line: `info` if it went well, `error` with the whole chain of
    /// causes if not.
    pub fn finish<T>(mut self, result: &Result<T, Error>) {
        self.leave();
        let Self { verb, subject, .. } = &self;
        let phases = self.summary();
        let total_us = self.started.elapsed().as_micros();
        match result {
            Ok(_) => tracing::info!(verb, subject, result = "ok", total_us, phases),
            Err(error) => {
                let error = explained(error);
                tracing::error!(verb, subject, result = "error", error, total_us, phases);
            }
        }
    }

    /// The phases that ended, as `name=microseconds`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (phase, time) in &self.done {
            let space = if text.is_empty() { "" } else { " " };
            // Writing into a String cannot fail.
            let _ = write!(text, "{space}{phase}={}us", time.as_micros());
        }
        text
    }

    fn leave(&mut self) {
        if let Some((phase, since)) = self.current.take() {
            self.done.push((phase, since.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_the_phases_in_order() {
        let mut phases = Phases::start("ADD", "net/c1/eth0");
        phases.enter("lock").unwrap();
        phases.enter("reserve_addresses").unwrap();
        phases.leave();

        let summary = phases.summary();

        let names: Vec<_> = summary.split(' ').filter_map(|part| part.split('=').next()).collect();
        assert_eq!(names, ["lock", "reserve_addresses"]);
    }
}
