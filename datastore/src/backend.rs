//! The key-value trait every record rests on: bytes under keys, with compare-and-swap.
//!
//! Invariant: one store-wide revision grows with every change, and a change made with an expected
//! revision happens only if the key is still at that revision. A change may go by one more record, that of
//! a pool for instance, and then happens only if that is unchanged too ([`Unchanged`]). Nothing else is
//! promised, so every layer above orders its writes such that a crash between any two of them is safe. What
//! follows from a record alone, as an index does, is written along with it ([`Along`]) and is never seen to
//! differ from it.
//!
//! What an implementation owes is written down as tests in `testing::contract` (feature
//! `test-support`).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use crate::etcd;

/// Position of a change in the history of the whole store; 0 is before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A value together with the revision of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The full key.
    pub key: String,
    /// The value as written.
    pub value: Vec<u8>,
    /// The change that wrote this value.
    pub revision: Revision,
}

/// What is to become of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<'a> {
    /// It gets this value; it must not exist ([`BackendError::Exists`]).
    Create(&'a [u8]),
    /// It gets this value; it must still be at this revision ([`BackendError::Conflict`];
    /// [`BackendError::NotFound`] if it is gone).
    Update(&'a [u8], Revision),
    /// It goes; it must exist ([`BackendError::NotFound`]) and, if a revision is given, still be at that one
    /// ([`BackendError::Conflict`]).
    Delete(Option<Revision>),
}

impl<'a> Write<'a> {
    /// The next version of what was read at this revision; `None` is that there was nothing.
    pub(crate) fn after(read: Option<Revision>, value: &'a [u8]) -> Self {
        match read {
            Some(revision) => Self::Update(value, revision),
            None => Self::Create(value),
        }
    }

    /// What it is called in errors and numbers.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Update(..) => "update",
            Self::Delete(_) => "delete",
        }
    }
}

/// Another key that is written in the same change as one that is compared, whatever was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Along {
    /// The other key.
    pub key: String,
    /// Its new value; `None` removes it, if it is there.
    pub value: Option<Vec<u8>>,
}

impl Along {
    /// Writes `key`, without a value.
    pub(crate) fn mark(key: String) -> Self {
        Self { key, value: Some(Vec::new()) }
    }

    /// Removes `key`.
    pub(crate) fn remove(key: String) -> Self {
        Self { key, value: None }
    }
}

/// Another key that a change goes by: it happens only if this one is still at this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchanged {
    /// The other key.
    pub key: String,
    /// The revision that it was read at.
    pub since: Revision,
}

/// A key-value store with compare-and-swap.
///
/// Keys are non-empty strings of parts separated by `/`. A prefix is empty (everything) or ends in
/// `/`, so that `a/b/` never matches `a/bc/…`.
pub trait Backend: Send + Sync {
    /// The value under `key`, or `None`.
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError>;

    /// Changes `key`, and with it, in one change that happens whole or not at all, the keys of `along`,
    /// each of which is another one. Answers with the revision of `key`, later than which none of them has.
    ///
    /// [`BackendError::Outdated`] if the key of `unchanged` has another revision or is gone, and nothing
    /// else is in the way.
    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError>;

    /// The same, going by no other key.
    fn write(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
    ) -> Result<Revision, BackendError> {
        self.write_if(key, write, along, None)
    }

    /// [`Write::Create`] alone.
    fn create(&self, key: &str, value: &[u8]) -> Result<Revision, BackendError> {
        self.write(key, Write::Create(value), &[])
    }

    /// [`Write::Update`] alone.
    fn update(
        &self,
        key: &str,
        value: &[u8],
        expected: Revision,
    ) -> Result<Revision, BackendError> {
        self.write(key, Write::Update(value, expected), &[])
    }

    /// [`Write::Delete`] alone.
    fn delete(&self, key: &str, expected: Option<Revision>) -> Result<(), BackendError> {
        self.write(key, Write::Delete(expected), &[]).map(drop)
    }

    /// The keys under `prefix` with their values, in byte order of the keys, the first `limit` of
    /// them if a limit is given.
    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError>;

    /// The keys under `prefix` alone, in byte order.
    fn keys(&self, prefix: &str) -> Result<Vec<String>, BackendError> {
        Ok(self.list(prefix, None)?.into_iter().map(|versioned| versioned.key).collect())
    }

    /// The newest revision of the store. Taken before a [`list`](Backend::list), it is the
    /// revision to [`watch`](Backend::watch) from without a gap.
    fn revision(&self) -> Result<Revision, BackendError>;

    /// Follows the changes under `prefix` that are newer than `after`.
    ///
    /// [`BackendError::Compacted`] if the store no longer remembers that far back.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError>;

    /// Does work that the backend has put off, if there is much of it. Changes no record. To be
    /// called where nobody waits: by STATUS, at the end of DEL and GC, never by ADD.
    fn upkeep(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A running watch.
///
/// Events come in the order of their revisions. A watcher that lags may be spared values that were
/// replaced meanwhile, but it always sees the latest change of every key.
pub trait Watch: Send {
    /// The next event, or `None` if there was none within `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Option<Event>, BackendError>;
}

/// A change that a [`Watch`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was created or its value replaced.
    Put(Versioned),
    /// The key was removed.
    Delete {
        /// The key that is gone.
        key: String,
        /// The change that removed it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(versioned) => &versioned.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(versioned) => versioned.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What a backend's own library reports, kept as the source of an error.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// `create` found the key already there.
    #[error("{key} exists already")]
    Exists {
        /// The key.
        key: String,
    },
    /// The key is no longer at the expected revision.
    #[error("{key} was changed by someone else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The key is not there.
    #[error("{key} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// Another key, which the change goes by, is no longer at the expected revision.
    #[error("{key} was changed or removed by someone else meanwhile")]
    Outdated {
        /// The other key.
        key: String,
    },
    /// A prefix that neither is empty nor ends in `/`.
    #[error("prefix {prefix:?} does not end in '/'")]
    Prefix {
        /// The prefix as given.
        prefix: String,
    },
    /// A watch from a revision that the store no longer remembers; list anew and watch from there.
    #[error("changes after revision {} are no longer all remembered, only those after {}", after.0, oldest.0)]
    Compacted {
        /// The revision asked for.
        after: Revision,
        /// The oldest revision that a watch may start after.
        oldest: Revision,
    },
    /// Others kept the store busy, or it did not answer, until the deadline; worth another try later.
    #[error("{operation}: datastore busy or not reachable")]
    Busy {
        /// What was attempted.
        operation: String,
        /// The last refusal.
        #[source]
        source: Cause,
    },
    /// No space left to write to.
    #[error("{operation}: no space left for the datastore")]
    Full {
        /// What was attempted.
        operation: String,
        /// The refusal.
        #[source]
        source: Cause,
    },
    /// The store can be read but not written.
    #[error("{operation}: datastore is read-only")]
    ReadOnly {
        /// What was attempted.
        operation: String,
        /// The refusal.
        #[source]
        source: Cause,
    },
    /// The store's file is damaged, or is not a store.
    #[error("{operation}: datastore is damaged")]
    Damaged {
        /// What was attempted.
        operation: String,
        /// The refusal.
        #[source]
        source: Cause,
    },
    /// The store was written by a newer margay.
    #[error("{path} has schema version {found}, this build knows up to {supported}")]
    NewerSchema {
        /// The database.
        path: String,
        /// Its version.
        found: u32,
        /// The newest version this build understands.
        supported: u32,
    },
    /// Anything else that the backend's library reports.
    #[error("{operation}")]
    Failed {
        /// What was attempted.
        operation: String,
        /// The failure.
        #[source]
        source: Cause,
    },
}

impl BackendError {
    /// Whether the same call may well succeed a little later with nobody having mended anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// Whether a store that other machines keep cannot be written to, or does not let this one in: what is
    /// to be removed from it can be put off, since no pod is to wait for that to be mended. A local one never is.
    pub fn is_out_of_reach(&self) -> bool {
        match self {
            Self::Busy { source, .. } | Self::Full { source, .. } => etcd::is_of_etcd(&**source),
            Self::Failed { source, .. } => etcd::is_denial(&**source),
            _ => false,
        }
    }

    /// Whether somebody else was faster.
    pub(crate) fn is_lost_race(&self) -> bool {
        matches!(self, Self::Exists { .. } | Self::Conflict { .. } | Self::NotFound { .. })
    }
}

/// Refuses a prefix that could match half a name.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), BackendError> {
    if prefix.is_empty() || prefix.ends_with('/') {
        Ok(())
    } else {
        Err(BackendError::Prefix { prefix: prefix.to_owned() })
    }
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        (**self).get(key)
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        (**self).write_if(key, write, along, unchanged)
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        (**self).list(prefix, limit)
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, BackendError> {
        (**self).keys(prefix)
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        (**self).revision()
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        (**self).watch(prefix, after)
    }

    fn upkeep(&self) -> Result<(), BackendError> {
        (**self).upkeep()
    }
}
