//! A backend that counts what is asked of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use margay_datastore::{
    Along, Backend, BackendError, Revision, Store, Unchanged, Versioned, Watch, Write,
};

/// Passes requests on, and remembers them.
#[derive(Clone)]
pub(super) struct Counted {
    store: Store,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) key: String,
    pub(super) is_write: bool,
    pub(super) answered: Instant,
    /// Records in the answer.
    pub(super) records: usize,
    /// The bytes of their keys and values.
    pub(super) bytes: usize,
}

impl Counted {
    pub(super) fn new(store: Store) -> Self {
        Self { store, requests: Arc::default() }
    }

    /// What was asked since the last time.
    pub(super) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, key: &str, is_write: bool, answer: &[Versioned]) {
        let (key, answered, records) = (key.to_owned(), Instant::now(), answer.len());
        let bytes = answer.iter().map(|record| record.key.len() + record.value.len()).sum();
        let request = Request { key, is_write, answered, records, bytes };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

impl Backend for Counted {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        let answer = self.store.backend().get(key);
        self.note(key, false, answer.as_ref().map_or(&[], Option::as_slice));
        answer
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        let answer = self.store.backend().write_if(key, write, along, unchanged);
        self.note(key, true, &[]);
        answer
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        let answer = self.store.backend().list(prefix, limit);
        self.note(prefix, false, answer.as_deref().unwrap_or(&[]));
        answer
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        let answer = self.store.backend().revision();
        self.note("", false, &[]);
        answer
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.store.backend().watch(prefix, after)
    }
}
