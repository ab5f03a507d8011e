//! Logs: to stderr and, if configured, to a file.
//!
//! Invariant: nothing here makes a verb fail, and nothing is written to stdout, which carries the
//! result. Each event is one write of one line to a file opened for appending, so that processes
//! that run at the same time do not tear each other's lines.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;

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

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
        }
    }
}

/// Starts logging for this process, once; a later call changes nothing. A log file that cannot be
/// opened is a warning on stderr.
pub fn init(conf: &LogConf) {
    let file = conf.file.as_deref().map(open);
    let writer = match &file {
        Some(Ok(file)) => BoxMakeWriter::new(std::io::stderr.and(Arc::clone(file))),
        _ => BoxMakeWriter::new(std::io::stderr),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(conf.level.filter())
        .with_writer(writer)
        .with_target(false)
        // Such an error would be printed to stderr, by a macro that panics where stderr is broken.
        .log_internal_errors(false)
        .finish()
        .with(filter_fn(is_worth_a_line));
    let first = tracing::subscriber::set_global_default(subscriber).is_ok();
    if let (true, Some(path), Some(Err(error))) = (first, &conf.file, &file) {
        tracing::warn!("cannot open the log file {}: {error}", path.display());
    }
}

/// Of other crates only what is wrong: at its finer levels, what speaks HTTP logs every frame.
fn is_worth_a_line(event: &Metadata<'_>) -> bool {
    event.target().starts_with("margay") || *event.level() <= Level::WARN
}

fn open(path: &Path) -> std::io::Result<Arc<File>> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    // A FIFO without a reader must not hang the runtime.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(flags);
    Ok(Arc::new(options.open(path)?))
}

/// Reports the keys of the configuration that have no effect; for ADD, since once is enough.
pub fn report_unused(keys: &[String]) {
    if keys.is_empty() {
        return;
    }
    let list = keys.join(", ");
    if keys.iter().any(|key| key == "policy.type") {
        tracing::warn!("keys without effect: {list}; network policy is not enforced");
    } else {
        tracing::info!("keys without effect: {list}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_calicos_names_in_any_case() {
        assert_eq!(LogLevel::parse("Warning"), Some(LogLevel::Warning));
        assert_eq!(LogLevel::parse("WARN"), Some(LogLevel::Warning));
        assert_eq!(LogLevel::parse("fatal"), Some(LogLevel::Error));
        assert_eq!(LogLevel::parse("loud"), None);
    }

    #[test]
    fn a_log_file_is_made_with_its_parents_and_appended_to() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/cni.log");

        for line in ["one\n", "two\n"] {
            open(&path).unwrap().as_ref().write_all(line.as_bytes()).unwrap();
        }

        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_an_error_and_nothing_to_wait_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();

        assert!(open(&path).is_err());
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_an_error_value_not_a_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();

        assert!(open(&file.path().join("cni.log")).is_err());
    }
}
