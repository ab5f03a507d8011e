//! Taking back all that a node has which will not come back: see [`remove_node`](crate::remove_node).
//!
//! Invariant: an assignment is released as the one that was found, and a block is given up by one write,
//! by compare-and-swap on a block without a slot of the node's own. The slots that other nodes have in it
//! and its queue stay in the record, so that nobody gets an address that is out or does not rest yet;
//! whoever claims the block has them from then on.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block, Handle};
use super::clock::Patience;
use super::placement::AsRead;
use super::pool::Family;
use super::select::won;
use super::{Ipam, IpamError};
use crate::Attachment;
use crate::backend::Revision;
use crate::keys;
use crate::store::{Stored, legible};

/// A claim of the node.
pub(crate) struct ClaimedBlock {
    block: IpNetwork,
    claim: Revision,
}

impl ClaimedBlock {
    pub(crate) fn cidr(&self) -> IpNetwork {
        self.block
    }
}

impl Ipam<'_> {
    /// Releases whatever attachments of this node hold, and says what that was.
    pub(crate) fn release_all(&self) -> Result<Vec<(Attachment, Vec<IpAddr>)>, IpamError> {
        let mut released = Vec::new();
        for key in self.store.keys_on(&self.node, keys::HANDLES)? {
            let Some(Stored { record: found, .. }) = self.store.read::<Handle>(&key)? else {
                continue;
            };
            let is_found = |now: &Handle| now.assignment == found.assignment;
            let addresses = self.release_if(&found.attachment, &is_found)?;
            released.push((found.attachment, addresses));
        }
        Ok(released)
    }

    /// Gives back slots of this node that no handle leads to, in whosever blocks, and says what that was.
    pub(crate) fn release_orphans(&self) -> Result<Vec<(Attachment, Vec<IpAddr>)>, IpamError> {
        let mut released = Vec::new();
        for family in [Family::V4, Family::V6] {
            for versioned in self.store.backend().list(&keys::blocks(family), None)? {
                let block = legible::<Block>(&versioned);
                let taken = block.into_iter().flat_map(|block| block.taken);
                for (ip, _) in taken.filter(|(_, slot)| slot.node == self.node) {
                    let orphan = self.release_orphan(ip)?;
                    released.extend(orphan.map(|attachment| (attachment, vec![ip])));
                }
            }
        }
        Ok(released)
    }

    /// Every block that the node has claimed.
    pub(crate) fn claimed_blocks(&self) -> Result<Vec<ClaimedBlock>, IpamError> {
        let mut claimed = Vec::new();
        for family in [Family::V4, Family::V6] {
            for versioned in self.store.backend().list(&keys::affinities(family), None)? {
                let Some(affinity) = legible::<Affinity>(&versioned) else { continue };
                if affinity.node == self.node {
                    let claim = versioned.revision;
                    claimed.push(ClaimedBlock { block: affinity.block, claim });
                }
            }
        }
        Ok(claimed)
    }

    /// Gives the block up, whatever others have borrowed of it; false if an address of it is this node's.
    pub(crate) fn leave(&self, claimed: &ClaimedBlock) -> Result<bool, IpamError> {
        let ClaimedBlock { block, claim } = claimed;
        let mut patience = Patience::new();
        loop {
            let found = self.read_block(block)?;
            let read = found.as_ref().map(AsRead::from);
            let found =
                found.map_or_else(|| Block::new(*block, &self.node), |stored| stored.record);
            let is_of_another = read.is_some() && found.node != self.node;
            if found.ended_claim == Some(claim.0) || (is_of_another && !found.is_given_up()) {
                break;
            }
            // Given up before, and claimed again: that claim too ends by a write of the block, if it still
            // holds. It is looked at behind the block, which a claim that ends meanwhile would change. One
            // on a block that was never written goes with its pool.
            if (is_of_another || read.is_none()) && !self.has_claim(block, *claim)? {
                break;
            }
            if found.taken.values().any(|allocation| allocation.node == self.node) {
                return Ok(false);
            }
            if self.rewrite_block(&found.given_up(*claim), read.as_ref(), Some(*claim))? {
                break;
            }
            patience.conflict()?;
        }
        won(self.store.remove(&keys::affinity(block), Some(*claim)))?;
        Ok(true)
    }

    fn has_claim(&self, block: &IpNetwork, claim: Revision) -> Result<bool, IpamError> {
        let affinity = self.store.read::<Affinity>(&keys::affinity(block))?;
        Ok(affinity.is_some_and(|stored| stored.revision == claim))
    }

    /// Removes the node's hints, which lead to nothing of its own any more.
    pub(crate) fn remove_hints(&self) -> Result<(), IpamError> {
        for family in [Family::V4, Family::V6] {
            for hint in self.store.backend().list(&keys::open_of(&self.node, family), None)? {
                won(self.store.remove(&hint.key, Some(hint.revision)))?;
            }
        }
        Ok(())
    }
}
