//! What every verb on an attachment opens: its lock, the datastore, a netlink socket.

use std::fmt::Display;
use std::net::IpAddr;

use margay_datastore::{Attachment, Endpoint, Store};
use rscni_types::types::CNI_NETNS;

use crate::config::{IpamConf, NetConf};
use crate::error::Error;
use crate::ipam::{self, Ipam, IpamError};
use crate::lock::Lock;
use crate::log;
use crate::naming;
use crate::netlink::{LinkInfo, Netlink};
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

/// One attachment, locked.
pub(super) struct Session<'a> {
    pub(super) call: &'a Call,
    pub(super) conf: &'a NetConf,
    pub(super) attachment: Attachment,
    pub(super) host_veth: String,
    pub(super) boot_id: String,
    pub(super) store: Store,
    pub(super) netlink: Netlink,
    _lock: Lock,
}

/// Who has the name of the attachment's host veth.
#[derive(Debug)]
pub(super) enum HostVeth {
    /// Nobody.
    Absent,
    /// The attachment: its alias says so, or it has none yet since an ADD was cut short.
    Ours(LinkInfo),
    /// Somebody else.
    Foreign(LinkInfo),
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
        let host_veth = naming::host_veth(&attachment);
        let boot_id = ipam::boot_id()?;
        let store = open_store(conf, &boot_id)?;
        let netlink = Netlink::open()?;
        Ok(Self { call, conf, attachment, host_veth, boot_id, store, netlink, _lock: lock })
    }

    /// The IPAM of the network.
    pub(super) fn ipam(&self) -> Ipam<'_> {
        Ipam::new(self.conf, self.call, &self.store, &self.boot_id)
    }

    /// The endpoint that an ADD of this attachment wrote.
    pub(super) fn endpoint(&self) -> Result<Option<Endpoint>, Error> {
        Ok(self.store.endpoint(&self.attachment)?)
    }

    /// The addresses that margay-ipam holds for the attachment; none where another plugin does.
    pub(super) fn assigned(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.allocator().assigned(&self.attachment).map_err(IpamError::from)?)
    }

    /// Whether margay-ipam holds anything for the attachment, if only the beginning of an
    /// assignment.
    pub(super) fn is_known_to_ipam(&self) -> Result<bool, Error> {
        Ok(self.allocator().is_known(&self.attachment).map_err(IpamError::from)?)
    }

    /// Gives back what margay-ipam holds for the attachment, for a configuration that names another
    /// plugin since.
    pub(super) fn release(&self) -> Result<(), Error> {
        if matches!(self.conf.ipam, IpamConf::Delegated(_)) {
            self.allocator().release(&self.attachment).map_err(IpamError::from)?;
        }
        Ok(())
    }

    fn allocator(&self) -> margay_datastore::Ipam<'_> {
        margay_datastore::Ipam::new(&self.store, &self.conf.nodename, &self.boot_id)
    }

    /// Looks for the attachment's host veth.
    pub(super) async fn host_veth(&self) -> Result<HostVeth, Error> {
        let Some(link) = self.netlink.link_by_name(&self.host_veth).await? else {
            return Ok(HostVeth::Absent);
        };
        let is_ours = self.is_ours(&link, "veth");
        Ok(if is_ours { HostVeth::Ours(link) } else { HostVeth::Foreign(link) })
    }

    /// Looks for the attachment's ifb device. What is somebody else's by its name is not it.
    pub(super) async fn ifb(&self) -> Result<Option<LinkInfo>, Error> {
        let link = self.netlink.link_by_name(&naming::ifb(&self.attachment)).await?;
        Ok(link.filter(|link| self.is_ours(link, "ifb")))
    }

    fn is_ours(&self, link: &LinkInfo, kind: &str) -> bool {
        match &link.alias {
            Some(alias) => *alias == naming::alias(&self.attachment),
            None => link.kind == kind,
        }
    }
}

/// Opens the datastore. The first verb of a boot takes back what earlier boots left behind.
pub(super) fn open_store(conf: &NetConf, boot_id: &str) -> Result<Store, Error> {
    let store = ipam::open_store(&conf.datastore, &conf.paths.database())?;
    ipam::reclaim_earlier_boots(&store, &conf.nodename, boot_id)?;
    Ok(store)
}
