//! Records that vanish with whoever keeps them.

use std::time::Duration;

use tonic::codegen::tokio_stream;

use super::client::Repeat;
use super::messages::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse,
};
use super::{Etcd, Failure, before_write, revision};
use crate::backend::{BackendError, Revision};

/// A lease that etcd granted. Records written under it vanish when it ends: when it was not renewed
/// in time, or is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    id: i64,
}

impl Etcd {
    /// Asks for a lease that ends unless it is renewed within `ttl`. etcd may grant more, and not
    /// less than a second or two.
    pub fn grant_lease(&self, ttl: Duration) -> Result<Lease, BackendError> {
        let ttl_s = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl_s };
        let answer: LeaseGrantResponse =
            self.read("grant a lease".to_owned(), async move |client| {
                client.unary("/etcdserverpb.Lease/LeaseGrant", request, Repeat::Always).await
            })?;
        Ok(Lease { id: answer.id })
    }

    /// Renews a lease and says for how long; `None` if it has ended.
    pub fn renew_lease(&self, lease: Lease) -> Result<Option<Duration>, BackendError> {
        let request = LeaseKeepAliveRequest { id: lease.id };
        self.read("renew a lease".to_owned(), async move |client| {
            let once = move || -> Box<dyn tokio_stream::Stream<Item = _> + Send + Unpin> {
                Box::new(tokio_stream::once(request.clone()))
            };
            let method = "/etcdserverpb.Lease/LeaseKeepAlive";
            let (mut answers, endpoint) = client.streaming(method, once).await?;
            let answer = answers.message().await;
            let answer: Option<LeaseKeepAliveResponse> =
                answer.map_err(|status| Failure::of_status(&endpoint, &status))?;
            let missing = "the lease's time";
            let answer = answer.ok_or(Failure::Malformed { endpoint, missing })?;
            Ok(u64::try_from(answer.ttl_s).ok().filter(|ttl_s| *ttl_s > 0).map(Duration::from_secs))
        })
    }

    /// Ends a lease, and removes what was written under it. One that has ended is fine.
    pub fn revoke_lease(&self, lease: Lease) -> Result<(), BackendError> {
        let request = LeaseRevokeRequest { id: lease.id };
        self.read("revoke a lease".to_owned(), async move |client| {
            let method = "/etcdserverpb.Lease/LeaseRevoke";
            match client.unary(method, request, Repeat::Always).await {
                Err(failure) if failure.is_not_found() => Ok(()),
                outcome => outcome.map(|_: LeaseRevokeResponse| ()),
            }
        })
    }

    /// Writes `key` under a lease, whoever wrote it last; `None` if the lease has ended.
    pub fn put_leased(
        &self,
        key: &str,
        value: &[u8],
        lease: Lease,
    ) -> Result<Option<Revision>, BackendError> {
        let operation = before_write("put", key)?;
        let request = PutRequest { key: self.full(key), value: value.to_vec(), lease: lease.id };
        self.read(operation, async move |client| {
            let method = "/etcdserverpb.KV/Put";
            match client.unary(method, request, Repeat::Always).await {
                Err(failure) if failure.is_not_found() => Ok(None),
                outcome => outcome.map(|answer: PutResponse| Some(revision(answer.header))),
            }
        })
    }
}
