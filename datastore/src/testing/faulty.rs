//! A backend that stops working at a chosen write, the way a killed process or a full disk does.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};

/// What happens at the chosen write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not happen, and nothing after it is answered any more: the process was killed.
    CrashBefore,
    /// It happens, but the caller never learns; nothing after it is answered: the process was
    /// killed, or the connection broke, on the way back.
    CrashAfter,
    /// It fails once with "no space left"; whatever follows works.
    FailOnce,
}

/// Passes everything on to another backend, except for one write.
pub struct Faulty<B> {
    inner: B,
    fault: Fault,
    /// Writes still to pass before the fault; the fault itself is at 0.
    countdown: AtomicU64,
}

/// The countdown once a crash has happened.
const DEAD: u64 = u64::MAX;

impl<B: Backend> Faulty<B> {
    /// The fault strikes at the write with this number, counted from 0.
    pub fn new(inner: B, fault: Fault, at_write: u64) -> Self {
        Self { inner, fault, countdown: AtomicU64::new(at_write) }
    }

    /// Whether the fault has struck.
    pub fn has_struck(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) > DEAD / 2
    }

    fn read<T>(&self, read: impl FnOnce(&B) -> Result<T, BackendError>) -> Result<T, BackendError> {
        if self.fault != Fault::FailOnce && self.has_struck() {
            return Err(crashed());
        }
        read(&self.inner)
    }

    fn strike<T>(
        &self,
        write: impl FnOnce(&B) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if self.has_struck() {
            return self.read(write);
        }
        // Wraps from 0 to DEAD, which is the mark of having struck.
        if self.countdown.fetch_sub(1, Ordering::SeqCst) != 0 {
            return write(&self.inner);
        }
        match self.fault {
            Fault::CrashBefore => Err(crashed()),
            Fault::CrashAfter => write(&self.inner).and_then(|_| Err(crashed())),
            Fault::FailOnce => Err(BackendError::Full {
                operation: "write".to_owned(),
                source: Box::new(io::Error::from(io::ErrorKind::StorageFull)),
            }),
        }
    }
}

fn crashed() -> BackendError {
    BackendError::Failed {
        operation: "anything after the crash".to_owned(),
        source: Box::new(io::Error::from(io::ErrorKind::ConnectionAborted)),
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        self.read(|inner| inner.get(key))
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.strike(|inner| inner.write_if(key, write, along, unchanged))
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        self.read(|inner| inner.list(prefix, limit))
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        self.read(Backend::revision)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.read(|inner| inner.watch(prefix, after))
    }

    fn upkeep(&self) -> Result<(), BackendError> {
        self.read(Backend::upkeep)
    }
}
