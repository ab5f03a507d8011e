//! GC: takes away everything of this network that belongs to no attachment in the runtime's list.
//!
//! What there is, is gathered from every place that could hold something of an attachment:
//! endpoints, allocations, host veths. So whatever step an ADD was cut short at, GC finds it.

use std::collections::BTreeSet;

use margay_datastore::Attachment;
use rscni_types::types::GcAttachment;

use super::session::{self, Session};
use super::teardown::teardown;
use crate::config::{self, NetConf};
use crate::dataplane;
use crate::error::{Error, chain};
use crate::ipam::{self, Ipam, IpamError};
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
        let known = gather(&conf).await?;

        phases.enter("teardown")?;
        for attachment in known.difference(&valid) {
            tracing::info!(%attachment, "taking away what no valid attachment has");
            note(collect(call, &conf, attachment).await);
        }

        phases.enter("map")?;
        note(remove_orphaned_map_entries(&conf).await);

        phases.enter("ipam")?;
        let boot_id = ipam::boot_id()?;
        let store = session::open_store(&conf, &boot_id)?;
        let valid: Vec<Attachment> = valid.iter().cloned().collect();
        let ipam = Ipam::new(&conf, call, &store, &boot_id);
        note(ipam.gc(&conf.name, &valid).map_err(Error::from));
        ipam::upkeep(&store);

        first_error.map_or(Ok(()), Err)
    })
}

async fn collect(call: &Call, conf: &NetConf, attachment: &Attachment) -> Result<(), Error> {
    let session = Session::open(call, conf, attachment.clone())?;
    teardown(&session).await
}

/// Every attachment of the network that something exists of.
async fn gather(conf: &NetConf) -> Result<BTreeSet<Attachment>, Error> {
    let boot_id = ipam::boot_id()?;
    let store = session::open_store(conf, &boot_id)?;
    let ipam = margay_datastore::Ipam::new(&store, &conf.nodename, &boot_id);
    let mut known: BTreeSet<Attachment> =
        store.endpoints(&conf.name)?.into_iter().map(|endpoint| endpoint.attachment).collect();
    known.extend(ipam.attachments(&conf.name).map_err(IpamError::from)?);
    let links = Netlink::open()?.links().await?;
    let aliases = links.into_iter().filter_map(|link| link.alias);
    let named = aliases.filter_map(|alias| naming::attachment_of_alias(&alias));
    known.extend(named.filter(|attachment| attachment.network() == conf.name));
    Ok(known)
}

/// Removes map entries whose interface does not exist, whatever network they were of: nothing else
/// knows of them any more.
async fn remove_orphaned_map_entries(conf: &NetConf) -> Result<(), Error> {
    let Some(pods) = dataplane::pods(&conf.paths.bpffs_root)? else { return Ok(()) };
    let entries = pods.entries().map_err(dataplane::DataplaneError::Maps)?;
    let links = Netlink::open()?.links().await?;
    let alive: BTreeSet<u32> = links.into_iter().map(|link| link.index).collect();
    for (address, entry) in entries {
        if !alive.contains(&entry.ifindex) {
            pods.remove(address)
                .map_err(|source| dataplane::DataplaneError::Map { address, source })?;
        }
    }
    Ok(())
}
