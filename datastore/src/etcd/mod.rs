//! The backend of several nodes: etcd.
//!
//! **Records.** A key is kept below [`EtcdConf::prefix`]; its revision is etcd's `mod_revision`, and
//! a change with an expected revision is one transaction that compares it. All reads are
//! linearizable, so what one node has written the others read.
//!
//! **Time.** Each request has a deadline, and all requests of a process together have one
//! ([`EtcdConf::patience`]): what is not answered by then is [`BackendError::Busy`]. So is a write
//! whose outcome nobody knows because the connection broke: it may have happened, and its caller must
//! look, as after a crash of its own.
//!
//! **Connections.** One for a process, made with its first request and kept: a handshake is paid
//! once. `client.rs` says when another member is asked.
//!
//! Nothing here logs a value, a password or a token, or puts one into an error.

mod client;
mod conf;
mod connect;
mod failure;
mod lease;
mod messages;
#[cfg(test)]
mod tests;
mod watch;
mod worker;

use std::future::Future;
use std::rc::Rc;

use margay_failpoints as failpoints;

use client::{Client, Repeat};
pub use conf::{ClientCert, Credentials, EtcdConf, EtcdConfError, Password};
#[cfg(any(test, feature = "test-support"))]
pub(crate) use connect::Connector;
use failure::Failure;
pub use lease::Lease;
use messages::{
    Compare, CompareResult, CompareTarget, CompareWith, DeleteRangeRequest, KeyValue, Operation,
    PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use worker::Worker;

use crate::backend::{
    Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write, check_prefix,
};
use crate::unopened::Unopened;

/// Records asked for at once: of blocks, the largest, this is a few megabytes.
const PAGE: usize = 500;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// A store in etcd, shared by all nodes of a cluster.
pub struct Etcd {
    prefix: String,
    worker: Worker,
}

impl Etcd {
    /// Reads the certificates and checks the configuration. The connection is made by the first
    /// request.
    pub fn open(conf: EtcdConf) -> Result<Self, EtcdConfError> {
        Ok(Self { prefix: conf.prefix.clone(), worker: Worker::new(conf)? })
    }

    fn full(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    fn read<T: Send + 'static, F>(
        &self,
        operation: String,
        work: impl FnOnce(Rc<Client>) -> F + Send + 'static,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        self.worker.call(work).map_err(|failure| failure.into_backend(operation))
    }

    /// What a change does to a key of this store.
    fn put_or_delete(&self, key: &str, value: Option<&[u8]>) -> RequestOp {
        let key = self.full(key);
        let change = match value {
            Some(value) => Operation::Put(PutRequest { key, value: value.to_vec(), lease: 0 }),
            None => Operation::DeleteRange(DeleteRangeRequest { key }),
        };
        change.into()
    }

    fn listed(
        &self,
        prefix: &str,
        limit: usize,
        keys_only: bool,
    ) -> Result<impl Iterator<Item = Versioned>, BackendError> {
        check_prefix(prefix)?;
        let listed = self.pages(prefix, limit, keys_only);
        let kvs = listed.map_err(|failure| failure.into_backend(format!("list {prefix}")))?;
        Ok(kvs.into_iter().filter_map(|kv| self.versioned(kv)))
    }

    /// A list of any length, as of one moment: the pages after the first are read at its revision. If
    /// that is compacted meanwhile, it begins anew.
    fn pages(&self, prefix: &str, limit: usize, keys_only: bool) -> Result<Vec<KeyValue>, Failure> {
        let (first, range_end) = range(&self.prefix, prefix);
        let mut listed: Vec<KeyValue> = Vec::new();
        let mut at_revision = 0;
        while listed.len() < limit {
            let page = i64::try_from(PAGE.min(limit - listed.len())).unwrap_or(i64::MAX);
            let request = RangeRequest {
                key: listed.last().map_or_else(|| first.clone(), |last| after(&last.key)),
                range_end: range_end.clone(),
                limit: page,
                revision: at_revision,
                keys_only,
            };
            let answer = self
                .worker
                .call(async move |client| client.unary(RANGE, request, Repeat::Always).await);
            let answer: RangeResponse = match answer {
                Err(failure) if failure.is_compacted() && at_revision != 0 => {
                    listed.clear();
                    at_revision = 0;
                    continue;
                }
                answer => answer?,
            };
            listed.extend(answer.kvs);
            if !answer.more {
                break;
            }
            at_revision = answer.header.unwrap_or_default().revision;
        }
        Ok(listed)
    }

    fn versioned(&self, kv: KeyValue) -> Option<Versioned> {
        versioned(&self.prefix, kv)
    }
}

impl Backend for Etcd {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        let request = RangeRequest { key: self.full(key), ..RangeRequest::default() };
        let answer: RangeResponse = self.read(format!("read {key}"), async move |client| {
            client.unary(RANGE, request, Repeat::Always).await
        })?;
        Ok(answer.kvs.into_iter().next().and_then(|kv| self.versioned(kv)))
    }

    /// A transaction that does the change if the key, and the one that it goes by, are as they have to be,
    /// and looks at the first if not.
    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        let operation = before_write(write.verb(), key)?;
        let full = self.full(key);
        let look = RangeRequest { key: full.clone(), keys_only: true, ..RangeRequest::default() };
        let (mut compare, value) = match write {
            Write::Create(value) => (vec![absent(full)], Some(value)),
            Write::Update(value, expected) => (at_revision(full, expected), Some(value)),
            Write::Delete(Some(expected)) => (at_revision(full, expected), None),
            Write::Delete(None) => (vec![present(full)], None),
        };
        if let Some(Unchanged { key, since }) = unchanged {
            compare.extend(at_revision(self.full(key), *since));
        }
        let others = along.iter().map(|Along { key, value }| (key.as_str(), value.as_deref()));
        let changes = std::iter::once((key, value)).chain(others);
        let request = TxnRequest {
            compare,
            success: changes.map(|(key, value)| self.put_or_delete(key, value)).collect(),
            failure: vec![Operation::Range(look).into()],
        };
        let answer: TxnResponse = self.read(operation, async move |client| {
            client.unary(TXN, request, Repeat::UnlessSent).await
        })?;
        if answer.succeeded {
            return Ok(revision(answer.header));
        }
        let found = answer.responses.first().and_then(|response| response.range.as_ref());
        let found = found.and_then(|found| found.kvs.first()).map(|kv| from_etcd(kv.mod_revision));
        Err(refusal(write, key.to_owned(), found, unchanged))
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        Ok(self.listed(prefix, limit.unwrap_or(usize::MAX), false)?.collect())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, BackendError> {
        Ok(self.listed(prefix, usize::MAX, true)?.map(|versioned| versioned.key).collect())
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        let request =
            RangeRequest { key: self.full("-"), keys_only: true, ..RangeRequest::default() };
        let operation = "read the newest revision".to_owned();
        let answer: RangeResponse = self.read(operation, async move |client| {
            client.unary(RANGE, request, Repeat::Always).await
        })?;
        Ok(revision(answer.header))
    }

    /// A watch goes on by itself on another member when its own is lost. An error of its `next`
    /// other than [`BackendError::Compacted`] tells that no member answers and does not end it.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        check_prefix(prefix)?;
        let watch = watch::Changes::start(&self.worker, &self.prefix, prefix, after)
            .map_err(|failure| failure.into_backend(format!("watch {prefix}")))?;
        Ok(Box::new(watch))
    }
}

/// Why a transaction was refused whose key was found at this revision.
fn refusal(
    write: Write<'_>,
    key: String,
    found: Option<Revision>,
    unchanged: Option<&Unchanged>,
) -> BackendError {
    let is_as_expected = match write {
        Write::Create(_) => found.is_none(),
        Write::Update(_, expected) | Write::Delete(Some(expected)) => found == Some(expected),
        Write::Delete(None) => found.is_some(),
    };
    match (write, unchanged) {
        (_, Some(other)) if is_as_expected => BackendError::Outdated { key: other.key.clone() },
        (Write::Create(_), _) => BackendError::Exists { key },
        _ if found.is_some() => BackendError::Conflict { key },
        _ => BackendError::NotFound { key },
    }
}

/// The smallest key behind `key`.
fn after(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

/// The first key under a prefix, and the first one behind: `/` is followed by `0`.
fn range(root: &str, prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let first = format!("{root}{prefix}");
    let end = format!("{}0", first.strip_suffix('/').unwrap_or(&first));
    (first.into_bytes(), end.into_bytes())
}

/// A record as the layers above know it. Their keys are text, so another is not one of theirs.
fn versioned(root: &str, kv: KeyValue) -> Option<Versioned> {
    let key = String::from_utf8(kv.key).ok()?.strip_prefix(root)?.to_owned();
    Some(Versioned { key, value: kv.value, revision: from_etcd(kv.mod_revision) })
}

fn absent(key: Vec<u8>) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        with: Some(CompareWith::CreateRevision(0)),
    }
}

/// One that is not there has the revision 0.
fn present(key: Vec<u8>) -> Compare {
    Compare { result: CompareResult::Greater.into(), ..absent(key) }
}

/// That the key is there, and at the revision.
fn at_revision(key: Vec<u8>, revision: Revision) -> Vec<Compare> {
    let exists = present(key.clone());
    let unchanged = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        with: Some(CompareWith::ModRevision(to_etcd(revision))),
    };
    vec![exists, unchanged]
}

/// Where a test has the process killed or the write refused; the operation's name.
fn before_write(verb: &str, key: &str) -> Result<String, BackendError> {
    let operation = format!("{verb} {key}");
    match failpoints::before(failpoints::Kind::Store, format_args!("{operation}")) {
        Ok(()) => Ok(operation),
        Err(source) => Err(BackendError::Failed { operation, source: Box::new(source) }),
    }
}

/// Whether an error's source is one of etcd's.
pub(crate) fn is_of_etcd(source: &(dyn std::error::Error + 'static)) -> bool {
    source.is::<Failure>()
}

/// Whether an error's source is that etcd does not let this node in.
pub(crate) fn is_denial(source: &(dyn std::error::Error + 'static)) -> bool {
    matches!(source.downcast_ref(), Some(Unopened::Etcd(_)))
        || source.downcast_ref().is_some_and(Failure::is_denial)
}

fn revision(header: Option<ResponseHeader>) -> Revision {
    from_etcd(header.unwrap_or_default().revision)
}

/// Revisions count from 1.
fn from_etcd(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}
