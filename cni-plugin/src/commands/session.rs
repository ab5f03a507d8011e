//! What every verb on an attachment opens: its lock, the datastore, a netlink socket.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Deref;
use std::path::Path;

use margay_datastore::{Attachment, Pool, Store};
use rscni_types::types::CNI_NETNS;

use super::teardown::{Teardown, teardown};
use crate::config::{ConfigError, Datastore, IpamConf, NetConf, PoolSet};
use crate::deletions::{self, Share};
use crate::error::Error;
use crate::hold::{Hold, Site};
use crate::ipam::{self, Ipam, IpamError};
use crate::lock::Lock;
use crate::log;
use crate::naming;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::phases::Phases;
use crate::protocol::{Call, ProtocolError, Target};

/// The configuration of a verb, valid, with logging started as it says.
pub(super) fn configuration(call: &Call) -> Result<NetConf, Error> {
    let conf = NetConf::from_map(&call.config)?;
    log::init(&conf.log);
    Ok(conf)
}

/// The attachment that a verb is about.
pub(super) fn attachment(conf: &NetConf, target: &Target) -> Result<Attachment, Error> {
    Ok(Attachment::new(&conf.name, &target.container_id, &target.ifname)?)
}

/// The sandbox's network namespace, for verbs that do not come without.
pub(super) fn netns(target: &Target) -> Result<Netns, Error> {
    let missing = || ProtocolError::Missing { names: vec![CNI_NETNS] };
    Ok(Netns::open(target.netns.as_deref().ok_or_else(missing)?)?)
}

/// Runs a verb on a runtime of this thread alone, and logs how it went.
pub(super) fn run<T>(
    verb: &'static str,
    subject: impl Display,
    work: impl AsyncFnOnce(&mut Phases) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut phases = Phases::start(verb, subject);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(work(&mut phases)),
        Err(error) => Err(Error::Runtime(error)),
    };
    phases.finish(&outcome);
    outcome
}

/// One attachment, locked, and the call that is about it.
pub(super) struct Session<'a> {
    pub(super) call: &'a Call,
    /// With the pools that are in the datastore, once these are [settled](Self::settle).
    pub(super) conf: Cow<'a, NetConf>,
    hold: Hold,
}

impl Deref for Session<'_> {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl<'a> Session<'a> {
    /// Waits for the attachment's lock and opens the rest.
    pub(super) fn open(
        call: &'a Call,
        conf: &'a NetConf,
        attachment: Attachment,
    ) -> Result<Self, Error> {
        let lock = Lock::take(&conf.paths.run_dir, &naming::host_veth(&attachment))?;
        let site = site_of_this_boot(conf)?;
        Ok(Self { call, conf: Cow::Borrowed(conf), hold: Hold::new(site, attachment, lock) })
    }

    /// Waits for the attachment's lock and opens the rest, without a look at the datastore and though that may
    /// not be opened.
    pub(super) fn open_anyway(
        call: &'a Call,
        conf: &'a NetConf,
        attachment: Attachment,
    ) -> Result<Self, Error> {
        let lock = Lock::take(&conf.paths.run_dir, &naming::host_veth(&attachment))?;
        let site = site(conf, ipam::open_store_anyway)?;
        Ok(Self { call, conf: Cow::Borrowed(conf), hold: Hold::new(site, attachment, lock) })
    }

    /// `None` while another verb is at work on the attachment.
    pub(super) fn open_idle(
        call: &'a Call,
        conf: &'a NetConf,
        site: &Site,
        attachment: Attachment,
    ) -> Result<Option<Self>, Error> {
        let lock = Lock::try_take(&conf.paths.run_dir, &naming::host_veth(&attachment))?;
        let hold = lock.map(|lock| Hold::new(site.clone(), attachment, lock));
        Ok(hold.map(|hold| Self { call, conf: Cow::Borrowed(conf), hold }))
    }

    /// See [`settle`].
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        settle(&mut self.conf, &self.hold.site.store)
    }

    /// The same as far as the datastore has the pools.
    pub(super) fn settle_as_found(&mut self) -> Result<(), Error> {
        settle_by(&mut self.conf, &self.hold.site.store, |pools, records| {
            pools.settle_as_found(records);
            Ok(())
        })
    }

    /// The first verb of a boot takes back what earlier boots left behind.
    pub(super) fn reclaim_earlier_boots(&self) -> Result<(), Error> {
        let Site { store, nodename, boot_id, .. } = &self.site;
        Ok(ipam::reclaim_earlier_boots(store, nodename, boot_id)?)
    }

    /// The IPAM of the network.
    pub(super) fn ipam(&self) -> Ipam<'_> {
        Ipam::new(&self.conf, self.call, &self.site.store, &self.site.boot_id)
    }

    /// Takes away everything of the attachment. `out_of_reach` is why the datastore is not even to be
    /// tried.
    pub(super) async fn teardown(&self, out_of_reach: Option<Error>) -> Result<Teardown, Error> {
        teardown(&self.hold, out_of_reach, |is_reachable| self.release(is_reachable)).await
    }

    /// Gives the attachment's addresses back: by the network's IPAM, and to margay-ipam, for a
    /// configuration that names another plugin since. Another plugin needs no datastore of margay's.
    fn release(&self, is_reachable: bool) -> Result<(), Error> {
        match self.conf.ipam {
            IpamConf::Builtin(_) if !is_reachable => Ok(()),
            IpamConf::Builtin(_) => Ok(self.ipam().del(&self.attachment)?),
            IpamConf::Delegated(_) => {
                let outcome = self.ipam().del(&self.attachment).map_err(Error::from);
                outcome.and_then(|()| if is_reachable { self.hold.release() } else { Ok(()) })
            }
        }
    }
}

/// Gives the configuration the pools that it chooses and the datastore has.
pub(super) fn settle(conf: &mut Cow<'_, NetConf>, store: &Store) -> Result<(), Error> {
    settle_by(conf, store, PoolSet::settle)
}

fn settle_by(
    conf: &mut Cow<'_, NetConf>,
    store: &Store,
    settle: impl FnOnce(&mut PoolSet, &[Pool]) -> Result<(), ConfigError>,
) -> Result<(), Error> {
    if !conf.ipam.pools().is_some_and(PoolSet::is_open) {
        return Ok(());
    }
    let records = store.pools()?;
    let pools = conf.to_mut().ipam.pools_mut();
    pools.map_or(Ok(()), |pools| settle(pools, &records).map_err(Error::Unsettled))
}

/// The node as a network's configuration describes it. Its datastore is not talked to yet.
fn site(
    conf: &NetConf,
    open_store: fn(&Datastore, &Path) -> Result<Store, IpamError>,
) -> Result<Site, Error> {
    Ok(Site {
        paths: conf.paths.clone(),
        nodename: conf.nodename.clone(),
        boot_id: ipam::boot_id()?,
        store: open_store(&conf.datastore, &conf.paths.database())?,
        netlink: Netlink::open()?,
    })
}

/// The same. The first verb of a boot takes back what earlier boots left behind.
pub(super) fn site_of_this_boot(conf: &NetConf) -> Result<Site, Error> {
    let site = site(conf, ipam::open_store)?;
    ipam::reclaim_earlier_boots(&site.store, &site.nodename, &site.boot_id)?;
    Ok(site)
}

/// Does what earlier DELs put off and the datastore itself did.
pub(super) async fn upkeep(conf: &NetConf, site: &Site) {
    drain(conf, site, Share::OfOthers).await;
    ipam::upkeep(&site.store);
}

/// Does some of what earlier DELs put off, where any can have: with a datastore on other machines.
pub(super) async fn drain(conf: &NetConf, site: &Site, share: Share) {
    if let Datastore::Etcd(_) = conf.datastore {
        deletions::drain_some(site, &conf.name, share).await;
    }
}
