//! An etcd that cannot even be asked, since what it takes to be let in cannot be read.

use std::sync::Arc;

use super::EtcdConfError;
use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};

/// Fails every request for the reason that the store could not be opened. For whoever has work to do
/// besides.
#[derive(Clone, Debug)]
pub struct UnopenedEtcd(Arc<EtcdConfError>);

/// The reason, as the source of each error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Unopened(Arc<EtcdConfError>);

impl UnopenedEtcd {
    /// What [`Etcd::open`](super::Etcd::open) said.
    #[must_use]
    pub fn new(reason: EtcdConfError) -> Self {
        Self(Arc::new(reason))
    }

    fn fail<T>(&self, operation: String) -> Result<T, BackendError> {
        Err(BackendError::Failed { operation, source: Box::new(Unopened(Arc::clone(&self.0))) })
    }
}

impl Backend for UnopenedEtcd {
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
