//! Takes away everything of an attachment: what DEL does, what GC does to the forgotten, what an
//! ADD does that fails or finds remains.
//!
//! Invariant: it starts from the attachment alone and takes "absent" for success; an error in one
//! step does not keep the next from being done. Addresses go back last, so that nothing of this
//! attachment exists any more when another one gets them. If the datastore is out of reach, its part is
//! put off (see [`crate::deletions`]), and so is that.

use std::collections::BTreeSet;
use std::net::IpAddr;

use margay_datapath::Datapath;
use margay_datastore::{Endpoint, Revision};

use crate::dataplane::{self, DataplaneError};
use crate::deletions::Deletions;
use crate::error::Error;
use crate::hold::{Hold, HostVeth};
use crate::naming;
use crate::netlink::LinkInfo;

/// What became of a teardown that met no error.
#[must_use]
pub(crate) enum Teardown {
    /// Nothing is left.
    Complete,
    /// What is left is in the datastore, which is out of reach, and is written down.
    PutOff(Error),
}

/// Takes away everything of the attachment. `out_of_reach` is why the datastore is not even to be
/// tried. `release` gives the addresses back; it is told whether the datastore can be reached.
pub(crate) async fn teardown(
    hold: &Hold,
    out_of_reach: Option<Error>,
    release: impl FnOnce(bool) -> Result<(), Error>,
) -> Result<Teardown, Error> {
    let mut failures = Failures { out_of_reach, ..Failures::default() };
    let endpoint = take_from_kernel(hold, &mut failures).await;
    failures.ask(|| delete_endpoint(hold, endpoint));
    if failures.errors.is_empty() {
        let is_reachable = failures.out_of_reach.is_none();
        failures.collect(release(is_reachable));
    }
    failures.conclude(hold)
}

/// Takes away what the kernel has of the attachment, and leaves the records.
pub(crate) async fn dismantle(hold: &Hold) -> Result<(), Error> {
    let mut failures = Failures::default();
    take_from_kernel(hold, &mut failures).await;
    match failures.out_of_reach.take() {
        Some(error) => Err(error),
        None => failures.into_result(),
    }
}

/// An endpoint as it was read; `None` if that failed, as it does of a record that does not decode.
type AsRead = Option<Option<(Endpoint, Revision)>>;

async fn take_from_kernel(hold: &Hold, failures: &mut Failures) -> AsRead {
    let link = match hold.host_veth().await {
        Ok(HostVeth::Ours(link)) => Some(link),
        Ok(HostVeth::Absent) => None,
        Ok(HostVeth::Foreign(link)) => {
            tracing::warn!(name = link.name, alias = link.alias, "not ours, left alone");
            None
        }
        Err(error) => failures.note(error),
    };
    let endpoint = failures.ask(|| Ok(hold.site.store.endpoint_at(&hold.attachment)?));
    let known = endpoint.as_ref().and_then(|endpoint| endpoint.as_ref());
    let addresses = failures.ask(|| addresses(hold, known.map(|(endpoint, _)| endpoint)));

    failures.collect(remove_map_entries(hold, addresses, link.as_ref()).await);
    failures.collect(delete_link(hold, link.as_ref()).await);
    failures.collect(delete_ifb(hold).await);
    endpoint
}

/// Every address that is known to be the attachment's.
fn addresses(hold: &Hold, endpoint: Option<&Endpoint>) -> Result<BTreeSet<IpAddr>, Error> {
    let mut addresses: BTreeSet<IpAddr> = hold.assigned()?.into_iter().collect();
    addresses.extend(endpoint.into_iter().flat_map(|endpoint| &endpoint.ips).map(|ip| ip.ip()));
    Ok(addresses)
}

fn delete_endpoint(hold: &Hold, endpoint: AsRead) -> Result<(), Error> {
    let (store, attachment) = (&hold.site.store, &hold.attachment);
    match endpoint {
        Some(Some((endpoint, revision))) => store.delete_endpoint_at(&endpoint, revision)?,
        Some(None) => false,
        None => store.delete_endpoint(attachment, &hold.site.nodename)?,
    };
    Ok(())
}

/// Where the datastore cannot say the addresses, or does not know them any more since the node was removed
/// from it, they are those that the map has for the link.
async fn remove_map_entries(
    hold: &Hold,
    addresses: Option<BTreeSet<IpAddr>>,
    link: Option<&LinkInfo>,
) -> Result<(), Error> {
    let root = &hold.site.paths.bpffs_root;
    let addresses = match (addresses, link) {
        (Some(addresses), _) if !addresses.is_empty() => addresses,
        (_, Some(link)) => dataplane::addresses_of(root, link.index)?,
        (_, None) => return Ok(()),
    };
    let failed = |address| move |source| DataplaneError::Map { address, source };
    for &address in &addresses {
        for entry in Datapath::earlier_entries(root, address).map_err(failed(address))? {
            if is_ours(hold, entry.ifindex, link).await? {
                entry.remove().map_err(failed(address))?;
            }
        }
    }
    let Some(pods) = dataplane::pods(root)? else { return Ok(()) };
    for &address in &addresses {
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
struct Failures {
    errors: Vec<Error>,
    /// Why the datastore is not asked any more: each question would take as long as the first one.
    out_of_reach: Option<Error>,
}

impl Failures {
    fn collect<T>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => self.note(error),
        }
    }

    /// Asks the datastore, if it can be reached.
    fn ask<T>(&mut self, question: impl FnOnce() -> Result<T, Error>) -> Option<T> {
        if self.out_of_reach.is_some() {
            return None;
        }
        self.collect(question())
    }

    fn note<T>(&mut self, error: Error) -> Option<T> {
        if error.is_out_of_reach() {
            self.out_of_reach.get_or_insert(error);
        } else {
            self.errors.push(error);
        }
        None
    }

    /// With no error, what is left is written down, or what was written down is forgotten.
    fn conclude(mut self, hold: &Hold) -> Result<Teardown, Error> {
        let out_of_reach = self.out_of_reach.take();
        self.into_result()?;
        let deletions = Deletions::below(&hold.site.paths.state_dir);
        match out_of_reach {
            Some(error) => {
                deletions.put_off(&hold.attachment)?;
                Ok(Teardown::PutOff(error))
            }
            None => {
                deletions.done(&hold.attachment)?;
                Ok(Teardown::Complete)
            }
        }
    }

    /// The first error; the others go to the log.
    fn into_result(self) -> Result<(), Error> {
        let mut errors = self.errors.into_iter();
        let first = errors.next();
        for error in errors {
            let error = crate::error::chain(&error);
            tracing::error!(error, "and this failed as well");
        }
        first.map_or(Ok(()), Err)
    }
}

impl Teardown {
    /// For whoever cannot go on before nothing is left.
    pub(crate) fn or_out_of_reach(self) -> Result<(), Error> {
        match self {
            Self::Complete => Ok(()),
            Self::PutOff(error) => Err(error),
        }
    }
}
