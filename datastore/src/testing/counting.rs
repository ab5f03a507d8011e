//! A backend that counts the calls: each is a round trip where the store is on another machine.

use std::sync::Mutex;

use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};

/// Passes everything on to another backend and remembers what that was.
pub struct Counting<B> {
    inner: B,
    calls: Mutex<Vec<String>>,
}

impl<B: Backend> Counting<B> {
    /// Counts from now on.
    pub fn new(inner: B) -> Self {
        Self { inner, calls: Mutex::default() }
    }

    /// The calls since the last time this was asked, such as `get nodes/a`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn counted(&self, call: &str, key: &str) -> &B {
        let mut calls = self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        calls.push(format!("{call} {key}"));
        &self.inner
    }
}

impl<B: Backend> Backend for Counting<B> {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        self.counted("get", key).get(key)
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.counted(write.verb(), key).write_if(key, write, along, unchanged)
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        self.counted("list", prefix).list(prefix, limit)
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        self.counted("revision", "").revision()
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.counted("watch", prefix).watch(prefix, after)
    }
}
