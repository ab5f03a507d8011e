//! A store that could not be opened, for whoever has work to do besides.

use std::sync::Arc;

use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};
use crate::etcd::EtcdConfError;

/// Why a store could not be opened. Fails every request for that reason, which is the source of each error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unopened {
    /// What [`Sqlite::open`](crate::Sqlite::open) said.
    #[error(transparent)]
    Sqlite(Arc<BackendError>),
    /// What [`Etcd::open`](crate::Etcd::open) said: what it takes to be let in cannot be read.
    #[error(transparent)]
    Etcd(Arc<EtcdConfError>),
}

impl Unopened {
    fn fail<T>(&self, operation: String) -> Result<T, BackendError> {
        let source = Box::new(self.clone());
        let Self::Sqlite(reason) = self else {
            return Err(BackendError::Failed { operation, source });
        };
        Err(match &**reason {
            BackendError::Busy { .. } => BackendError::Busy { operation, source },
            BackendError::Full { .. } => BackendError::Full { operation, source },
            BackendError::ReadOnly { .. } => BackendError::ReadOnly { operation, source },
            BackendError::Damaged { .. } => BackendError::Damaged { operation, source },
            _ => BackendError::Failed { operation, source },
        })
    }
}

impl From<BackendError> for Unopened {
    fn from(reason: BackendError) -> Self {
        Self::Sqlite(Arc::new(reason))
    }
}

impl From<EtcdConfError> for Unopened {
    fn from(reason: EtcdConfError) -> Self {
        Self::Etcd(Arc::new(reason))
    }
}

impl Backend for Unopened {
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
