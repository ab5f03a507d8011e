//! A datastore whose requests are counted and timed.

use std::time::Instant;

use margay_datastore::{
    Along, Backend, BackendError, Revision, Store, Unchanged, Versioned, Watch, Write,
};

use crate::metrics::Metrics;

/// Measures what goes to the store.
pub struct Measured {
    store: Store,
    metrics: Metrics,
}

impl Measured {
    /// The same store, measured.
    #[must_use]
    pub fn store(store: Store, metrics: Metrics) -> Store {
        Store::new(Self { store, metrics })
    }

    fn measure<T>(
        &self,
        operation: &'static str,
        request: impl FnOnce(&dyn Backend) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let started = Instant::now();
        let outcome = request(self.store.backend());
        self.metrics.note_request(operation, started.elapsed(), outcome.as_ref().err());
        outcome
    }
}

impl Backend for Measured {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        self.measure("get", |backend| backend.get(key))
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.measure(write.verb(), |backend| backend.write_if(key, write, along, unchanged))
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        self.measure("list", |backend| backend.list(prefix, limit))
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, BackendError> {
        self.measure("keys", |backend| backend.keys(prefix))
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        self.measure("revision", |backend| backend.revision())
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.measure("watch", |backend| backend.watch(prefix, after))
    }

    fn upkeep(&self) -> Result<(), BackendError> {
        self.measure("upkeep", |backend| backend.upkeep())
    }
}
