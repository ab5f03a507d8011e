//! Takes one attachment away because an operator says so, not the runtime.
//!
//! Invariant: nothing is taken of a sandbox that lives, by its veth pair or its namespace, unless the
//! operator insists; it goes by the one teardown, under the attachment's lock.

use std::net::IpAddr;

use margay_datastore::{Attachment, Slot};

use crate::commands::teardown::teardown;
use crate::error::Error;
use crate::hold::{Hold, HostVeth, Site};
use crate::ipam::{self, IpamError};
use crate::lock::Lock;
use crate::naming;

/// What became of [`release`].
#[derive(Debug, PartialEq, Eq)]
pub enum Released {
    /// Everything of the attachment is gone; these addresses went back.
    Done(Vec<IpAddr>),
    /// There is nothing of it on this node or in the datastore.
    Unknown,
    /// Nothing was done: a verb is at work on it.
    Busy,
    /// Nothing was done: its sandbox lives.
    Alive {
        /// What shows it.
        because: String,
    },
    /// Nothing was done: it is on another node, which may need it.
    Elsewhere {
        /// The node.
        node: String,
    },
    /// Nothing was done: another IPAM plugin gave its addresses, and has to be told by the runtime.
    OfAnotherIpam,
}

/// Takes away everything of an attachment of this node. `insists` is to take it away though its sandbox
/// lives, which then has no network any more.
///
/// # Errors
/// When the datastore or the kernel fails.
pub async fn release(
    site: &Site,
    attachment: &Attachment,
    insists: bool,
) -> Result<Released, Error> {
    let Some(lock) = Lock::try_take(&site.paths.run_dir, &naming::host_veth(attachment))? else {
        return Ok(Released::Busy);
    };
    let hold = Hold::new(site.clone(), attachment.clone(), lock);
    let endpoint = hold.endpoint()?;
    let holder = hold.site.allocator().holding(attachment).map_err(IpamError::from)?;
    let node = endpoint.as_ref().map(|endpoint| endpoint.node.clone());
    let node = node.or_else(|| holder.as_ref().map(|holder| holder.node.clone()));
    if let Some(node) = node.filter(|node| *node != site.nodename) {
        return Ok(Released::Elsewhere { node });
    }
    let link = match hold.host_veth().await? {
        HostVeth::Ours(link) => Some(link),
        HostVeth::Absent | HostVeth::Foreign(_) => None,
    };
    if endpoint.is_none() && holder.is_none() && link.is_none() {
        return Ok(Released::Unknown);
    }
    if endpoint.is_some() && holder.is_none() {
        return Ok(Released::OfAnotherIpam);
    }
    let netns = endpoint.map(|endpoint| endpoint.netns);
    let netns = netns.or_else(|| holder.and_then(|holder| holder.netns));
    let alive = match (link, netns) {
        (Some(link), _) => Some(format!("its host veth {} is there", link.name)),
        (None, Some(netns)) if ipam::is_netns_alive(&netns) => {
            Some(format!("its network namespace {netns} is there"))
        }
        _ => None,
    };
    if let Some(because) = alive.filter(|_| !insists) {
        return Ok(Released::Alive { because });
    }
    let addresses = hold.assigned()?;
    let give_back = |is_reachable| if is_reachable { hold.release() } else { Ok(()) };
    teardown(&hold, None, give_back).await?.or_out_of_reach()?;
    tracing::info!(%attachment, ?addresses, "released, since an operator said so");
    Ok(Released::Done(addresses))
}

/// Gives back an address whose slot nothing leads to, so that neither a DEL nor [`release`] can: a pod of this node may
/// have it all the same. `insists` is to give it back though one has it, or though another node's may.
/// [`Released::Unknown`] where the address has changed hands since the slot was read.
///
/// # Errors
/// When the datastore or the kernel fails.
pub async fn release_orphan(
    site: &Site,
    address: IpAddr,
    slot: &Slot,
    insists: bool,
) -> Result<Released, Error> {
    let attachment = &slot.attachment;
    let Some(_lock) = Lock::try_take(&site.paths.run_dir, &naming::host_veth(attachment))? else {
        return Ok(Released::Busy);
    };
    if !insists {
        if slot.node != site.nodename {
            return Ok(Released::Elsewhere { node: slot.node.clone() });
        }
        let mut endpoints = site.store.every_endpoint()?.into_iter();
        if let Some(user) = endpoints.find(|it| it.ips.iter().any(|ip| ip.ip() == address)) {
            let because = format!("the endpoint {} has {address}", user.attachment);
            return Ok(Released::Alive { because });
        }
        if let HostVeth::Ours(link) = site.host_veth(attachment).await? {
            return Ok(Released::Alive {
                because: format!("its host veth {} is there", link.name),
            });
        }
        if let Some(netns) = slot.netns.as_ref().filter(|netns| ipam::is_netns_alive(netns)) {
            let because = format!("its network namespace {netns} is there");
            return Ok(Released::Alive { because });
        }
    }
    let released = site.allocator().release_orphan(address).map_err(IpamError::from)?;
    let Some(attachment) = released else { return Ok(Released::Unknown) };
    tracing::info!(%attachment, %address, "released, since an operator said so");
    Ok(Released::Done(vec![address]))
}
