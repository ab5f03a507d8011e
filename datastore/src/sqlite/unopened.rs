//! A database that could not be opened, for whoever has work to do besides.

use std::sync::Arc;

use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};

/// Fails every request for the reason that the database could not be opened.
#[derive(Clone, Debug)]
pub struct UnopenedSqlite(Arc<BackendError>);

/// The reason, as the source of each error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unopened(Arc<BackendError>);

impl UnopenedSqlite {
    /// What [`Sqlite::open`](super::Sqlite::open) said.
    #[must_use]
    pub fn new(reason: BackendError) -> Self {
        Self(Arc::new(reason))
    }

    fn fail<T>(&self, operation: String) -> Result<T, BackendError> {
        let source = Box::new(Unopened(Arc::clone(&self.0)));
        Err(match &*self.0 {
            BackendError::Busy { .. } => BackendError::Busy { operation, source },
            BackendError::Full { .. } => BackendError::Full { operation, source },
            BackendError::ReadOnly { .. } => BackendError::ReadOnly { operation, source },
            BackendError::Damaged { .. } => BackendError::Damaged { operation, source },
            _ => BackendError::Failed { operation, source },
        })
    }
}

impl Backend for UnopenedSqlite {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        self.fail(format!("read {key}"))
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        _: &[Along],
        _: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.fail(format!("{} {key}", write.verb()))
    }

    fn list(&self, prefix: &str, _: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        self.fail(format!("list {prefix}"))
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        self.fail("read the newest revision".to_owned())
    }

    fn watch(&self, prefix: &str, _: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.fail(format!("watch {prefix}"))
    }
}
