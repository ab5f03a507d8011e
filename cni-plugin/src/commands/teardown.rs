//! Takes away everything of an attachment: what DEL does, what GC does to the forgotten, what an
//! ADD does that fails or finds remains.
//!
//! Invariant: it starts from the attachment alone and takes "absent" for success; an error in one
//! step does not keep the next from being done. Addresses go back last, so that nothing of this
//! attachment exists any more when another one gets them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use margay_datapath::Datapath;
use margay_datastore::Endpoint;

use crate::dataplane::{self, DataplaneError};
use crate::error::Error;
use crate::hold::{Hold, HostVeth};
use crate::naming;
use crate::netlink::LinkInfo;

/// Takes away everything of the attachment. `release` gives its addresses back.
pub(crate) async fn teardown(
    hold: &Hold,
    release: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failures = dismantle(hold).await;
    failures.collect(hold.site.store.delete_endpoint(&hold.attachment).map_err(Error::from));
    if failures.is_empty() {
        failures.collect(release());
    }
    failures.into_result()
}

/// Takes away what the kernel has of the attachment, and leaves the records.
pub(crate) async fn dismantle(hold: &Hold) -> Failures {
    let mut failures = Failures::default();
    let link = match hold.host_veth().await {
        Ok(HostVeth::Ours(link)) => Some(link),
        Ok(HostVeth::Absent) => None,
        Ok(HostVeth::Foreign(link)) => {
            tracing::warn!(name = link.name, alias = link.alias, "not ours, left alone");
            None
        }
        Err(error) => failures.note(error),
    };
    let endpoint = failures.collect(hold.endpoint()).flatten();
    let addresses = failures.collect(addresses(hold, endpoint.as_ref()));

    failures.collect(remove_map_entries(hold, &addresses.unwrap_or_default(), link.as_ref()).await);
    failures.collect(delete_link(hold, link.as_ref()).await);
    failures.collect(delete_ifb(hold).await);
    failures
}

/// Every address that is known to be the attachment's.
fn addresses(hold: &Hold, endpoint: Option<&Endpoint>) -> Result<BTreeSet<IpAddr>, Error> {
    let mut addresses: BTreeSet<IpAddr> = hold.assigned()?.into_iter().collect();
    addresses.extend(endpoint.into_iter().flat_map(|endpoint| &endpoint.ips).map(|ip| ip.ip()));
    Ok(addresses)
}

async fn remove_map_entries(
    hold: &Hold,
    addresses: &BTreeSet<IpAddr>,
    link: Option<&LinkInfo>,
) -> Result<(), Error> {
    let root = &hold.site.paths.bpffs_root;
    let failed = |address| move |source| DataplaneError::Map { address, source };
    for &address in addresses {
        for entry in Datapath::earlier_entries(root, address).map_err(failed(address))? {
            if is_ours(hold, entry.ifindex, link).await? {
                entry.remove().map_err(failed(address))?;
            }
        }
    }
    let Some(pods) = dataplane::pods(root)? else { return Ok(()) };
    for &address in addresses {
        let Some(entry) = pods.get(address).map_err(failed(address))? else { continue };
        if is_ours(hold, entry.ifindex, link).await? {
            pods.remove(address).map_err(failed(address))?;
        }
    }
    Ok(())
}

/// Whether a map entry with this interface is this attachment's. An address can have gone to another pod if an IPAM
/// plugin lost its state; that pod's entry must stay.
async fn is_ours(hold: &Hold, ifindex: u32, link: Option<&LinkInfo>) -> Result<bool, Error> {
    if link.is_some_and(|link| link.index == ifindex) {
        return Ok(true);
    }
    let owner = hold.site.netlink.link_by_index(ifindex).await?;
    let others = owner.and_then(|link| naming::attachment_of_alias(&link.alias?));
    Ok(others.is_none())
}

async fn delete_link(hold: &Hold, link: Option<&LinkInfo>) -> Result<(), Error> {
    if let Some(link) = link {
        hold.site.netlink.delete_link(link.index).await?;
    }
    Datapath::remove_links(&hold.site.paths.bpffs_root, &hold.host_veth)
        .map_err(|source| DataplaneError::Attach { interface: hold.host_veth.clone(), source })?;
    Ok(())
}

/// After the host veth, whose filter leads to it.
async fn delete_ifb(hold: &Hold) -> Result<(), Error> {
    if let Some(ifb) = hold.ifb().await? {
        hold.site.netlink.delete_link(ifb.index).await?;
    }
    Ok(())
}

/// The errors of steps that were gone through all the same.
#[derive(Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    fn collect<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => self.note(error),
        }
    }

    fn note<T>(&mut self, error: Error) -> Option<T> {
        self.0.push(error);
        None
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first error; the others go to the log.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        let first = errors.next();
        for error in errors {
            let error = crate::error::chain(&error);
            tracing::error!(error, "and this failed as well");
        }
        first.map_or(Ok(()), Err)
    }
}
