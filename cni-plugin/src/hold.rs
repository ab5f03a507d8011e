//! One attachment, locked, with all that it takes to look at it and to take it away: what a verb
//! has of it, and upkeep, which knows no network's configuration.

use std::net::IpAddr;

use margay_datastore::{Attachment, Endpoint, Store};

use crate::config::Paths;
use crate::error::Error;
use crate::ipam::IpamError;
use crate::lock::Lock;
use crate::naming;
use crate::netlink::{LinkInfo, Netlink};

/// The node that an attachment is on.
#[derive(Clone)]
pub struct Site {
    /// Where state lives.
    pub paths: Paths,
    /// Name of the node in the datastore.
    pub nodename: String,
    /// The kernel's boot ID.
    pub boot_id: String,
    /// The datastore.
    pub store: Store,
    /// A socket in the node's own namespace.
    pub netlink: Netlink,
}

/// One attachment, locked.
pub(crate) struct Hold {
    pub(crate) site: Site,
    pub(crate) attachment: Attachment,
    pub(crate) host_veth: String,
    _lock: Lock,
}

/// Who has the name of the attachment's host veth.
#[derive(Debug)]
pub(crate) enum HostVeth {
    /// Nobody.
    Absent,
    /// The attachment: its alias says so, or it has none yet since an ADD was cut short.
    Ours(LinkInfo),
    /// Somebody else.
    Foreign(LinkInfo),
}

impl Site {
    /// margay-ipam as this node sees it.
    #[must_use]
    pub fn allocator(&self) -> margay_datastore::Ipam<'_> {
        margay_datastore::Ipam::new(&self.store, &self.nodename, &self.boot_id)
    }

    /// Looks for an attachment's host veth.
    pub(crate) async fn host_veth(&self, attachment: &Attachment) -> Result<HostVeth, Error> {
        let name = naming::host_veth(attachment);
        let Some(link) = self.netlink.link_by_name(&name).await? else {
            return Ok(HostVeth::Absent);
        };
        let is_ours = is_of(attachment, &link, "veth");
        Ok(if is_ours { HostVeth::Ours(link) } else { HostVeth::Foreign(link) })
    }

    /// Looks for an attachment's ifb device. What is somebody else's by its name is not it.
    pub(crate) async fn ifb(&self, attachment: &Attachment) -> Result<Option<LinkInfo>, Error> {
        let link = self.netlink.link_by_name(&naming::ifb(attachment)).await?;
        Ok(link.filter(|link| is_of(attachment, link, "ifb")))
    }
}

impl Hold {
    /// An attachment whose lock has been taken.
    pub(crate) fn new(site: Site, attachment: Attachment, lock: Lock) -> Self {
        let host_veth = naming::host_veth(&attachment);
        Self { site, attachment, host_veth, _lock: lock }
    }

    /// The endpoint that an ADD of this attachment wrote.
    pub(crate) fn endpoint(&self) -> Result<Option<Endpoint>, Error> {
        Ok(self.site.store.endpoint(&self.attachment)?)
    }

    /// The addresses that margay-ipam holds for the attachment; none where another plugin does.
    pub(crate) fn assigned(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(self.site.allocator().assigned(&self.attachment).map_err(IpamError::from)?)
    }

    /// Whether margay-ipam holds anything for the attachment, if only the beginning of an
    /// assignment.
    pub(crate) fn is_known_to_ipam(&self) -> Result<bool, Error> {
        Ok(self.site.allocator().is_known(&self.attachment).map_err(IpamError::from)?)
    }

    /// Gives back what margay-ipam holds for the attachment.
    pub(crate) fn release(&self) -> Result<(), Error> {
        self.site.allocator().release(&self.attachment).map_err(IpamError::from)?;
        Ok(())
    }

    /// Looks for the attachment's host veth.
    pub(crate) async fn host_veth(&self) -> Result<HostVeth, Error> {
        self.site.host_veth(&self.attachment).await
    }

    /// Looks for the attachment's ifb device.
    pub(crate) async fn ifb(&self) -> Result<Option<LinkInfo>, Error> {
        self.site.ifb(&self.attachment).await
    }
}

fn is_of(attachment: &Attachment, link: &LinkInfo, kind: &str) -> bool {
    match &link.alias {
        Some(alias) => *alias == naming::alias(attachment),
        None => link.kind == kind,
    }
}
