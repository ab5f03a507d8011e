//! The phases of a verb: what took how long, in one line at the end.
//!
//! With the cargo feature `failpoints` every phase is also a fail point of that name, driven by the
//! environment variable `FAILPOINTS` of the `fail` crate: `reserve_addresses=return` makes entering
//! the phase an error, `reserve_addresses=return(abort)` kills the process there. Without the
//! feature none of that is compiled in.

use std::fmt::{Display, Write};
use std::time::{Duration, Instant};

use crate::error::{Error, chain};

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fail point {phase}")]
pub struct Injected {
    /// Name of the phase.
    pub phase: &'static str,
}

impl Phases {
    /// Starts the watch. `subject` is the attachment, or the network for GC and STATUS.
    #[must_use]
    pub fn start(verb: &'static str, subject: impl Display) -> Self {
        #[cfg(feature = "failpoints")]
        failpoints::read_environment();
        let subject = subject.to_string();
        Self { verb, subject, started: Instant::now(), current: None, done: Vec::new() }
    }

    /// Ends the phase before and begins the next one. An error only with the feature `failpoints`.
    pub fn enter(&mut self, phase: &'static str) -> Result<(), Injected> {
        self.leave();
        self.current = Some((phase, Instant::now()));
        #[cfg(feature = "failpoints")]
        failpoints::hit(phase)?;
        Ok(())
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
                let error = chain(error);
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

#[cfg(feature = "failpoints")]
mod failpoints {
    use std::sync::Once;

    use super::Injected;

    /// Takes over `FAILPOINTS`, once and for the life of the process.
    pub(super) fn read_environment() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    }

    pub(super) fn hit(phase: &'static str) -> Result<(), Injected> {
        fail::fail_point!(phase, |argument: Option<String>| {
            if argument.as_deref() == Some("abort") {
                std::process::abort();
            }
            Err(Injected { phase })
        });
        Ok(())
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
