//! GC: takes away everything of this network that belongs to no attachment in the runtime's list.
//!
//! What there is, is gathered from every place that could hold something of an attachment:
//! endpoints, allocations, host veths. So whatever step an ADD was cut short at, GC finds it.
//!
//! Invariant: an ADD that is under way while GC runs is left alone, though the list, which is older,
//! does not name it. While it runs it has its lock; after that its endpoint says that it became ready
//! when GC had begun. The specification rules out such ADDs, and runtimes err. An ADD that
//! had nothing left to do but write its endpoint when GC began has ended, and is garbage unless the
//! list names it, though the runtime may still wait for its answer: nothing tells the two apart.

use std::collections::BTreeSet;

use margay_datastore::{Attachment, EndpointState, Store};
use rscni_types::types::GcAttachment;

use super::session::{self, Session};
use crate::config::{self, IpamConf, NetConf};
use crate::dataplane::{self, DataplaneError};
use crate::error::{Error, chain};
use crate::hold::Site;
use crate::ipam::{Ipam, IpamError};
use crate::lock::{IpamGate, Lock};
use crate::naming;
use crate::netlink::Netlink;
use crate::protocol::Call;

/// Takes away what belongs to no valid attachment. Everything is tried; the first error is
/// returned, the others are logged.
pub(super) fn gc(call: &Call) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let valid: BTreeSet<Attachment> = config::valid_attachments(&call.config)?
        .into_iter()
        .map(|GcAttachment { container_id, ifname }| {
            Attachment::new(&conf.name, container_id, ifname)
        })
        .collect::<Result<_, _>>()?;
    session::run("GC", &conf.name, async |phases| {
        phases.enter("gather")?;
        let mut first_error = None;
        let mut note = |outcome: Result<(), Error>| {
            if let Err(error) = outcome {
                let text = chain(&error);
                tracing::error!(error = text, "garbage stays behind");
                first_error.get_or_insert(error);
            }
        };
        let site = session::site_of_this_boot(&conf)?;
        let known = gather(&conf, &site).await?;

        phases.enter("teardown")?;
        for attachment in known.difference(&valid) {
            note(collect(call, &conf, &site, attachment).await);
        }
        note(Lock::sweep(&conf.paths.run_dir).map_err(Error::from));

        phases.enter("map")?;
        let outcome = remove_orphaned_map_entries(&conf, &mut note).await;
        note(outcome);

        phases.enter("ipam")?;
        note(collect_delegated(call, &conf, &site, valid));
        session::upkeep(&conf, &site).await;

        first_error.map_or(Ok(()), Err)
    })
}

async fn collect(
    call: &Call,
    conf: &NetConf,
    site: &Site,
    attachment: &Attachment,
) -> Result<(), Error> {
    let Some(session) = Session::open_idle(call, conf, site, attachment.clone())? else {
        tracing::info!(%attachment, "another verb is at work on it: left alone");
        return Ok(());
    };
    if is_new(&session)? {
        tracing::info!(%attachment, "added while the garbage was collected: left alone");
        return Ok(());
    }
    tracing::info!(%attachment, "taking away what no valid attachment has");
    session.teardown(None).await?.or_out_of_reach()
}

/// Whether an ADD came to its end since this GC began.
fn is_new(session: &Session<'_>) -> Result<bool, Error> {
    let endpoint = session.endpoint()?;
    Ok(endpoint.is_some_and(|endpoint| {
        endpoint.state == EndpointState::Ready
            && endpoint.boot_id == session.site.boot_id
            && endpoint.ready_at_boot_us >= session.call.began_at_boot_us
    }))
}

/// Hands the list on to another IPAM plugin, with what is left alone here put on it. What margay-ipam
/// holds was gathered, and has been given back already.
fn collect_delegated(
    call: &Call,
    conf: &NetConf,
    site: &Site,
    mut valid: BTreeSet<Attachment>,
) -> Result<(), Error> {
    let Site { store, boot_id, .. } = site;
    if let IpamConf::Delegated(_) = conf.ipam {
        let _gate = IpamGate::close(&conf.paths.run_dir)?;
        valid.extend(endpoints(store, conf)?);
        let valid: Vec<Attachment> = valid.into_iter().collect();
        Ipam::new(conf, call, store, boot_id).gc(&conf.name, &valid)?;
    }
    Ok(())
}

/// Every attachment of the network that something exists of on this node. The runtime's list names
/// none of another node's, which may share the datastore.
async fn gather(conf: &NetConf, site: &Site) -> Result<BTreeSet<Attachment>, Error> {
    let mut known = endpoints(&site.store, conf)?;
    known.extend(site.allocator().attachments(&conf.name).map_err(IpamError::from)?);
    let links = site.netlink.links().await?;
    let aliases = links.into_iter().filter_map(|link| link.alias);
    let named = aliases.filter_map(|alias| naming::attachment_of_alias(&alias));
    known.extend(named.filter(|attachment| attachment.network() == conf.name));
    Ok(known)
}

fn endpoints(store: &Store, conf: &NetConf) -> Result<BTreeSet<Attachment>, Error> {
    Ok(store.endpoints_of(&conf.name, &conf.nodename)?)
}

/// Removes map entries whose interface does not exist, whatever network they were of: nothing else
/// knows of them any more. The outcome of each is noted.
async fn remove_orphaned_map_entries(
    conf: &NetConf,
    note: &mut impl FnMut(Result<(), Error>),
) -> Result<(), Error> {
    let Some(pods) = dataplane::pods(&conf.paths.bpffs_root)? else { return Ok(()) };
    let entries = pods.entries().map_err(DataplaneError::Maps)?;
    let links = Netlink::open()?.links().await?;
    let alive: BTreeSet<u32> = links.into_iter().map(|link| link.index).collect();
    for (address, entry) in entries {
        if !alive.contains(&entry.ifindex) {
            note(dataplane::remove_entry(&pods, address, &entry).map_err(Error::from));
        }
    }
    Ok(())
}
