//! This node in the datastore: its record, and its addresses on the overlay.

use std::net::IpAddr;

use margay::ipam::{self, reclaim_earlier_boots};
use margay::naming;
use margay_datastore::{
    AssignRequest, AttachmentError, Encapsulation, Ipam, IpamError, Node, OverlayEnd, Pool, Store,
    StoreError,
};

use crate::underlay::Underlay;

/// Why this node could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Earlier boots' addresses could not be taken back, or the boot ID not read.
    #[error(transparent)]
    Ipam(#[from] ipam::IpamError),
    /// An overlay address could not be had or looked at.
    #[error("overlay address")]
    OverlayAddress(#[source] IpamError),
    /// The overlay address has nobody to hold it.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The node's record could not be written.
    #[error("record of the node")]
    Record(#[from] StoreError),
}

/// This node, as it is known to others.
#[derive(Clone)]
pub struct Registrar {
    store: Store,
    name: String,
}

impl Registrar {
    /// For the node of this name.
    #[must_use]
    pub fn new(store: Store, name: &str) -> Self {
        Self { store, name: name.to_owned() }
    }

    /// Writes what others have to know of this node, if it is not what they know already, and returns
    /// it. With a pool that uses VXLAN the node gets an address on the overlay, for what it sends
    /// itself: an answer to its address on the network between the nodes would not come back by the
    /// overlay, and be dropped where reverse paths are looked at.
    ///
    /// # Errors
    /// When the datastore fails. That there is no address left for the overlay is only logged.
    pub fn register(&self, underlay: &Underlay, pools: &[Pool]) -> Result<Node, NodeError> {
        let boot_id = ipam::boot_id()?;
        reclaim_earlier_boots(&self.store, &self.name, &boot_id)?;
        let overlay = self.overlay(pools, &boot_id)?;
        Ok(self.store.update_node(&self.name, |node| {
            node.addresses.clone_from(&underlay.addresses);
            node.overlay.clone_from(&overlay);
        })?)
    }

    fn overlay(&self, pools: &[Pool], boot_id: &str) -> Result<Option<OverlayEnd>, NodeError> {
        let on_overlay = |pool: &&Pool| pool.encapsulation != Encapsulation::None;
        let pools: Vec<&Pool> = pools.iter().filter(on_overlay).collect();
        if pools.is_empty() {
            return Ok(None);
        }
        let mut addresses = Vec::new();
        for ipv4 in [true, false] {
            addresses.extend(self.overlay_address(ipv4, &pools, boot_id)?);
        }
        Ok(Some(OverlayEnd { mac: naming::overlay_mac(&self.name), addresses }))
    }

    fn overlay_address(
        &self,
        ipv4: bool,
        pools: &[&Pool],
        boot_id: &str,
    ) -> Result<Option<IpAddr>, NodeError> {
        let attachment = naming::overlay_attachment(&self.name, ipv4)?;
        let usable = pools.iter().filter(|pool| pool.cidr.is_ipv4() == ipv4 && pool.is_open());
        let request = AssignRequest {
            attachment: attachment.clone(),
            pod: None,
            netns: None,
            pools: usable.map(|&pool| pool.clone()).collect(),
            ipv4,
            ipv6: !ipv4,
            requested: Vec::new(),
            strict_affinity: false,
        };
        let ipam = Ipam::new(&self.store, &self.name, boot_id);
        if let Some(held) =
            ipam.assigned(&attachment).map_err(NodeError::OverlayAddress)?.into_iter().next()
        {
            return Ok(Some(held));
        }
        if request.pools.is_empty() {
            return Ok(None);
        }
        // Half an assignment, of an agent that was killed, holds nothing and is in the way.
        ipam.release(&attachment).map_err(NodeError::OverlayAddress)?;
        match ipam.assign(&request) {
            Ok(assigned) => Ok(assigned.into_iter().next()),
            Err(IpamError::Exhausted { .. }) => {
                tracing::warn!(ipv4, "no pool has an address left for this node's overlay device");
                Ok(None)
            }
            Err(error) => Err(NodeError::OverlayAddress(error)),
        }
    }
}
