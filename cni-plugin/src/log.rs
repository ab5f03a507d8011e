//! Logs: to stderr and, if configured, to a file; and the time of each phase of a verb.
//!
//! Invariant: nothing here makes a verb fail, and nothing is written to stdout, which carries the
//! result.

use std::path::PathBuf;

/// Where logs go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConf {
    /// Least severity that is written.
    pub level: LogLevel,
    /// A file to append to, besides stderr.
    pub file: Option<PathBuf>,
}

/// Least severity that is written, with Calico's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// Details of each step.
    Debug,
    /// One line per verb.
    #[default]
    Info,
    /// What an operator should look at.
    Warning,
    /// What went wrong.
    Error,
}

impl LogLevel {
    /// A level by its name in any case; Calico's `fatal` and `panic` are errors here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Some(Self::Trace),
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" | "warning" => Some(Self::Warning),
            "error" | "fatal" | "panic" => Some(Self::Error),
            _ => None,
        }
    }
}
