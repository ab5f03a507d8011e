//! Events that the programs report (aya-log), read by any process.
//!
//! The ring is not pinned by name: it belongs to one build's programs, whose event format only that
//! build knows, and is found through the program's number. It must not be opened on the path of an
//! ADD: aya looks through all loaded programs for it.

use std::fmt;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

use crate::ProgramId;

/// The events cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("open the event log of program {program}")]
pub struct EventLogError {
    /// The program whose events were asked for.
    program: ProgramId,
    #[source]
    source: Box<aya_log::Error>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How important the program thinks it is.
    pub level: tracing::Level,
    /// What the program says.
    pub message: String,
}

/// The reader's end of the programs' event ring. Its file descriptor is readable when there are
/// events, for `poll` or an async runtime.
pub struct EventLog {
    ring: EbpfLogger<Collector>,
    collector: Collector,
}

impl EventLog {
    pub(crate) fn open(program: ProgramId) -> Result<Self, EventLogError> {
        let collector = Collector::default();
        let ring = EbpfLogger::init_from_id_with_logger(program.0, collector.clone())
            .map_err(|source| EventLogError { program, source: Box::new(source) })?;
        Ok(Self { ring, collector })
    }

    /// Takes every event that is there, oldest first; does not wait.
    pub fn drain(&mut self) -> Vec<Event> {
        self.ring.flush();
        self.collector.take()
    }
}

impl AsFd for EventLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventLog")
    }
}

/// What aya-log writes its records to.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Event>>>);

impl Collector {
    fn take(&self) -> Vec<Event> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let event = Event { level: level(record.level()), message: record.args().to_string() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn flush(&self) {}
}

fn level(level: Level) -> tracing::Level {
    match level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
        Level::Trace => tracing::Level::TRACE,
    }
}
