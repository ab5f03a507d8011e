//! `margay-ipam`: margay's address management for other network plugins.
//!
//! Each address comes with its pool's prefix length and with the pool's first address as the
//! gateway, which is never given to a pod: `ptp` puts it on the host's side of the pair, `bridge`
//! with `isGateway` on the bridge.

use std::borrow::Cow;

use margay_datastore::{Attachment, Store, StoreError};
use rscni_types::ipnet::IpNet;
use rscni_types::types::{CNIResult, IpConfig};

use super::builtin::{
    Builtin, boot_id, open_store, open_store_anyway, reclaim_earlier_boots, upkeep,
};
use super::{AssignedIp, IpamError};
use crate::config::{Datastore, IpamNetConf, PoolSet, Requested, prev_result, valid_attachments};
use crate::deletions::{Deletions, Share, Stuck, TRIES_EACH};
use crate::error::{Error, chain};
use crate::lock::Lock;
use crate::log;
use crate::naming;
use crate::phases::Phases;
use crate::protocol::{Call, Plugin, Target};

/// The IPAM plugin.
pub struct MargayIpam;

impl Plugin for MargayIpam {
    fn add(&self, call: &Call, target: &Target) -> Result<CNIResult, Error> {
        let netconf = read(call)?;
        log::report_unused(netconf.unused_keys());
        logged("ADD", &subject(&netconf, target), |phases| {
            let attachment = attachment(&netconf, &target.container_id, &target.ifname)?;
            let requested = Requested::from_map(&call.config)?.or_args(&target.args);
            phases.enter("open_datastore")?;
            let queue = Queue::of(&netconf);
            let _lock = queue.as_ref().map(|queue| queue.lock(&attachment)).transpose()?;
            let (store, boot_id) = (open(&netconf)?, boot_id()?);
            reclaim_earlier_boots(&store, &netconf.nodename, &boot_id)?;
            phases.enter("reserve_addresses")?;
            let builtin = builtin(&netconf, &store, &boot_id);
            if let Some(queue) = queue {
                queue.give_back(&builtin, &attachment)?;
                queue.drain(&builtin, Share::OfAdd);
            }
            let pools = match settled_pools(&netconf, &store) {
                Ok(pools) => pools,
                Err(error) => {
                    builtin.refuse_second(&attachment)?;
                    return Err(error);
                }
            };
            if let Some(pool) = pools.usable.iter().find(|pool| pool.gateway().is_none()) {
                return Err(IpamError::NoGateway { pool: pool.cidr }.into());
            }
            let builtin = Builtin { pools: &pools, ..builtin };
            let result = builtin.add(&attachment, target, &requested.ips)?;
            let ips = result.ips.iter().map(ip_config).collect();
            Ok(CNIResult { ips, dns: result.dns, ..CNIResult::default() })
        })
    }

    fn del(&self, call: &Call, target: &Target) -> Result<(), Error> {
        let netconf = read(call)?;
        logged("DEL", &subject(&netconf, target), |phases| {
            let attachment = attachment(&netconf, &target.container_id, &target.ifname)?;
            phases.enter("open_datastore")?;
            let queue = Queue::of(&netconf);
            let _lock = queue.as_ref().map(|queue| queue.lock(&attachment)).transpose()?;
            let store = open_store_anyway(&netconf.datastore, &netconf.database())?;
            let boot_id = boot_id()?;
            phases.enter("release_addresses")?;
            let builtin = builtin(&netconf, &store, &boot_id);
            let released =
                queue.as_ref().map_or(Ok(()), |queue| queue.forget_endpoint(&builtin, &attachment));
            let released = released.and_then(|()| Ok(builtin.del(&attachment)?));
            match (released, &queue) {
                (Err(error), Some(queue)) if error.is_out_of_reach() => {
                    let error = chain(&error);
                    tracing::warn!(error, "the datastore is out of reach: the DEL is put off");
                    return Ok(queue.deletions.put_off(&attachment)?);
                }
                (outcome, _) => outcome?,
            }
            if let Some(queue) = queue {
                queue.deletions.done(&attachment)?;
                queue.drain(&builtin, Share::OfOthers);
            }
            upkeep(&store);
            Ok(())
        })
    }

    fn check(&self, call: &Call, target: &Target) -> Result<(), Error> {
        let netconf = read(call)?;
        logged("CHECK", &subject(&netconf, target), |phases| {
            let attachment = attachment(&netconf, &target.container_id, &target.ifname)?;
            let expected: Vec<_> = match prev_result(&call.config)? {
                Some(result) => result.ips.iter().map(|ip| ip.address.addr()).collect(),
                None => Vec::new(),
            };
            phases.enter("open_datastore")?;
            let (store, boot_id) = (open(&netconf)?, boot_id()?);
            phases.enter("compare_addresses")?;
            let mut pools = netconf.pools.clone();
            if pools.is_open() {
                pools.settle_as_found(&store.pools()?);
            }
            let builtin = Builtin { pools: &pools, ..builtin(&netconf, &store, &boot_id) };
            Ok(builtin.check(&attachment, &expected)?)
        })
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let netconf = read(call)?;
        logged("GC", &netconf.name, |phases| {
            let valid = valid_attachments(&call.config)?;
            let valid = valid
                .iter()
                .map(|valid| attachment(&netconf, &valid.container_id, &valid.ifname))
                .collect::<Result<Vec<_>, _>>()?;
            phases.enter("open_datastore")?;
            let (store, boot_id) = (open(&netconf)?, boot_id()?);
            phases.enter("release_addresses")?;
            let builtin = builtin(&netconf, &store, &boot_id);
            if let Some(queue) = Queue::of(&netconf) {
                queue.drain(&builtin, Share::OfOthers);
            }
            let released = builtin.gc(&netconf.name, &valid)?;
            released.iter().for_each(|attachment| tracing::info!("{attachment} was stale"));
            upkeep(&store);
            Ok(())
        })
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        let netconf = read(call)?;
        logged("STATUS", &netconf.name, |phases| {
            phases.enter("open_datastore")?;
            let (store, boot_id) = (open(&netconf)?, boot_id()?);
            phases.enter("look_for_free_addresses")?;
            let builtin = builtin(&netconf, &store, &boot_id);
            if let Some(queue) = Queue::of(&netconf) {
                queue.drain(&builtin, Share::OfOthers);
            }
            let pools = settled_pools(&netconf, &store)?;
            Builtin { pools: &pools, ..builtin }.status()?;
            upkeep(&store);
            Ok(())
        })
        .map_err(Error::into_status)
    }
}

/// What DELs put off that did not reach etcd: see [`crate::deletions`], whose rules about locks hold here. A
/// local datastore is always in reach.
struct Queue<'a> {
    netconf: &'a IpamNetConf,
    deletions: Deletions,
}

impl<'a> Queue<'a> {
    fn of(netconf: &'a IpamNetConf) -> Option<Self> {
        matches!(netconf.datastore, Datastore::Etcd(_))
            .then(|| Self { netconf, deletions: Deletions::below(&netconf.state_dir) })
    }

    fn lock(&self, attachment: &Attachment) -> Result<Lock, Error> {
        Ok(Lock::take(&self.netconf.run_dir, &naming::host_veth(attachment))?)
    }

    /// Does what was put off of an attachment whose lock the caller has. False if nothing was.
    fn give_back(&self, builtin: &Builtin<'_>, attachment: &Attachment) -> Result<bool, Error> {
        if !self.deletions.has(attachment) {
            return Ok(false);
        }
        self.forget_endpoint(builtin, attachment)?;
        builtin.del(attachment)?;
        self.deletions.done(attachment)?;
        tracing::info!(%attachment, "gave back what a DEL had put off");
        Ok(true)
    }

    /// The same of another attachment. One that has an endpoint is margay's, which looks at the kernel before it
    /// gives the addresses back.
    fn give_back_unless_margays(
        &self,
        builtin: &Builtin<'_>,
        attachment: &Attachment,
    ) -> Result<bool, Error> {
        match builtin.store.endpoint(attachment)? {
            None => self.give_back(builtin, attachment),
            Some(_) => Ok(false),
        }
    }

    /// The same for others of the network, in passing: a failure is not the verb's.
    fn drain(&self, builtin: &Builtin<'_>, share: Share) {
        let drain = || {
            let mut attachments = self.deletions.attachments()?;
            attachments.retain(|attachment| attachment.network() == self.netconf.name);
            let mut stuck = Stuck::default();
            let mut done = 0;
            for attachment in attachments.iter().take(share.attachments() * TRIES_EACH) {
                if done == share.attachments() {
                    break;
                }
                let name = naming::host_veth(attachment);
                let Some(_lock) = Lock::try_take(&self.netconf.run_dir, &name)? else { continue };
                match self.give_back_unless_margays(builtin, attachment) {
                    Ok(is_done) => done += usize::from(is_done),
                    Err(error) => stuck.pass_over(attachment, error)?,
                }
            }
            stuck.conclude()
        };
        if let Err(error) = drain() {
            tracing::warn!(error = chain(&error), "what a DEL had put off is put off again");
        }
    }

    /// Removes the endpoint of an attachment whose DEL by margay was put off, and which another plugin has
    /// since: that DEL has taken away all but the records. One that does not decode is no reason to keep addresses.
    fn forget_endpoint(&self, builtin: &Builtin<'_>, attachment: &Attachment) -> Result<(), Error> {
        if !self.deletions.has(attachment) {
            return Ok(());
        }
        match builtin.store.endpoint_at(attachment) {
            Ok(Some((endpoint, revision))) if endpoint.node == builtin.node => {
                builtin.store.delete_endpoint_at(&endpoint, revision)?;
            }
            Ok(_) => {}
            Err(error @ StoreError::Decode { .. }) => {
                tracing::warn!(%attachment, error = chain(&error), "the endpoint is removed unread");
                builtin.store.delete_endpoint(attachment, builtin.node)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn read(call: &Call) -> Result<IpamNetConf, Error> {
    let netconf = IpamNetConf::from_map(&call.config)?;
    log::init(&netconf.log);
    Ok(netconf)
}

fn logged<T>(
    verb: &'static str,
    subject: &str,
    story: impl FnOnce(&mut Phases) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut phases = Phases::start(verb, subject);
    let result = story(&mut phases);
    phases.finish(&result);
    result
}

fn subject(netconf: &IpamNetConf, target: &Target) -> String {
    format!("{}/{}/{}", netconf.name, target.container_id, target.ifname)
}

fn attachment(
    netconf: &IpamNetConf,
    container_id: &str,
    ifname: &str,
) -> Result<Attachment, Error> {
    Ok(Attachment::new(&netconf.name, container_id, ifname)?)
}

fn open(netconf: &IpamNetConf) -> Result<Store, IpamError> {
    open_store(&netconf.datastore, &netconf.database())
}

/// The pools, with those that are chosen of the datastore's.
fn settled_pools<'a>(netconf: &'a IpamNetConf, store: &Store) -> Result<Cow<'a, PoolSet>, Error> {
    let mut pools = Cow::Borrowed(&netconf.pools);
    if pools.is_open() {
        pools.to_mut().settle(&store.pools()?).map_err(Error::Unsettled)?;
    }
    Ok(pools)
}

fn builtin<'a>(netconf: &'a IpamNetConf, store: &'a Store, boot_id: &'a str) -> Builtin<'a> {
    Builtin { store, node: &netconf.nodename, boot_id, pools: &netconf.pools }
}

fn ip_config(ip: &AssignedIp) -> IpConfig {
    let address = IpNet::new(ip.network.ip(), ip.network.prefix());
    // A prefix length out of an IpNetwork is never too long.
    let address = address.unwrap_or_else(|_| IpNet::from(ip.network.ip()));
    IpConfig { interface: None, address, gateway: ip.gateway }
}
