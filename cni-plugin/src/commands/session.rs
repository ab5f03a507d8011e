//! What every verb on an attachment opens: its lock, the datastore, a netlink socket.

use std::fmt::Display;
use std::ops::Deref;

use margay_datastore::{Attachment, Store};
use rscni_types::types::CNI_NETNS;

use crate::config::{IpamConf, NetConf};
use crate::error::Error;
use crate::hold::{Hold, Site};
use crate::ipam::{self, Ipam};
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
    pub(super) conf: &'a NetConf,
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
        Self::locked(call, conf, attachment, lock)
    }

    /// `None` while another verb is at work on the attachment.
    pub(super) fn open_idle(
        call: &'a Call,
        conf: &'a NetConf,
        attachment: Attachment,
    ) -> Result<Option<Self>, Error> {
        let lock = Lock::try_take(&conf.paths.run_dir, &naming::host_veth(&attachment))?;
        lock.map(|lock| Self::locked(call, conf, attachment, lock)).transpose()
    }

    fn locked(
        call: &'a Call,
        conf: &'a NetConf,
        attachment: Attachment,
        lock: Lock,
    ) -> Result<Self, Error> {
        let boot_id = ipam::boot_id()?;
        let store = open_store(conf, &boot_id)?;
        let (paths, nodename) = (conf.paths.clone(), conf.nodename.clone());
        let site = Site { paths, nodename, boot_id, store, netlink: Netlink::open()? };
        Ok(Self { call, conf, hold: Hold::new(site, attachment, lock) })
    }

    /// The IPAM of the network.
    pub(super) fn ipam(&self) -> Ipam<'_> {
        Ipam::new(self.conf, self.call, &self.site.store, &self.site.boot_id)
    }

    /// Gives the attachment's addresses back: by the network's IPAM, and to margay-ipam, for a
    /// configuration that names another plugin since.
    pub(super) fn release(&self) -> Result<(), Error> {
        let outcome = self.ipam().del(&self.attachment).map_err(Error::from);
        match self.conf.ipam {
            IpamConf::Builtin(_) => outcome,
            IpamConf::Delegated(_) => outcome.and(self.hold.release()),
        }
    }
}

/// Opens the datastore. The first verb of a boot takes back what earlier boots left behind.
pub(super) fn open_store(conf: &NetConf, boot_id: &str) -> Result<Store, Error> {
    let store = ipam::open_store(&conf.datastore, &conf.paths.database())?;
    ipam::reclaim_earlier_boots(&store, &conf.nodename, boot_id)?;
    Ok(store)
}
