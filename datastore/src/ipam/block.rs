//! The records of address management: block, handle, affinity and the hint of open blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::pool::{addresses, block_defect};
use crate::Attachment;
use crate::backend::Revision;
use crate::keys;
use crate::records::PodRef;
use crate::store::Record;

/// A block and its slots. Whoever writes it with an address under `taken` has allocated it; no
/// other record is needed for an address to be taken or free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) cidr: IpNetwork,
    /// The node that claimed the block; empty if that gave it up.
    pub(crate) node: String,
    /// Of a block that was given up, the revision of the claim that ended with it: an affinity of
    /// this revision counts for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_claim: Option<u64>,
    pub(crate) taken: BTreeMap<IpAddr, Allocation>,
    /// Addresses that were out before, in the order in which they came back.
    #[serde(default)]
    pub(crate) released: Vec<Released>,
}

/// A taken slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    pub(crate) attachment: Attachment,
    /// The handle's `assignment` at the time.
    pub(crate) assignment: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<PodRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<String>,
    /// The node that the attachment is on; another than the block's if the address is borrowed.
    pub(crate) node: String,
    pub(crate) boot_id: String,
    /// Seconds since the Unix epoch.
    pub(crate) assigned_at: u64,
}

/// An address that was out and may go out again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Released {
    pub(crate) ip: IpAddr,
    /// Milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
}

/// The next address a block would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vacancy {
    pub(crate) ip: IpAddr,
    /// When it was released, in milliseconds since the Unix epoch; `None` if it was never out.
    pub(crate) released_at_ms: Option<u64>,
}

/// All that an attachment may hold. Written before the first slot is taken, removed after the last
/// one is given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handle {
    pub(crate) attachment: Attachment,
    /// Unique to one call of assign, so that a late undo never touches a later assignment.
    pub(crate) assignment: String,
    pub(crate) node: String,
    pub(crate) boot_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) netns: Option<String>,
    /// Every block that may have a slot of this assignment.
    pub(crate) blocks: Vec<IpNetwork>,
    /// Set by a release that found a slot missing: the assignment must not take any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) releasing: bool,
}

/// The claim of a node on a block. Only a claim that has ended is replaced by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Affinity {
    pub(crate) block: IpNetwork,
    pub(crate) node: String,
}

/// The hint that a block has free slots. May be wrong in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) block: IpNetwork,
    pub(crate) node: String,
    /// When the next of its addresses has rested, in milliseconds since the Unix epoch.
    pub(crate) rested_at_ms: u64,
}

impl Record for Block {
    fn key(&self) -> String {
        keys::block(&self.cidr)
    }

    fn defect(&self) -> Option<String> {
        let released = self.released.iter().map(|released| &released.ip);
        block_defect(&self.cidr).or(outside(&self.cidr, self.taken.keys().chain(released)))
    }
}

/// What is wrong with a block that names an address which it does not have.
pub(super) fn outside<'a>(
    cidr: &IpNetwork,
    mut ips: impl Iterator<Item = &'a IpAddr>,
) -> Option<String> {
    ips.find(|ip| !cidr.contains(**ip)).map(|ip| format!("{ip} is not in the block {cidr}"))
}

impl Record for Handle {
    fn key(&self) -> String {
        keys::handle(&self.attachment)
    }

    fn defect(&self) -> Option<String> {
        self.blocks.iter().find_map(block_defect)
    }
}

impl Record for Affinity {
    fn key(&self) -> String {
        keys::affinity(&self.block)
    }

    fn defect(&self) -> Option<String> {
        block_defect(&self.block)
    }
}

impl Record for Open {
    fn key(&self) -> String {
        keys::open(&self.node, &self.block)
    }

    fn defect(&self) -> Option<String> {
        block_defect(&self.block)
    }
}

impl Block {
    pub(crate) fn new(cidr: IpNetwork, node: &str) -> Self {
        let (taken, released) = (BTreeMap::new(), Vec::new());
        Self { cidr, node: node.to_owned(), ended_claim: None, taken, released }
    }

    /// The block as a node leaves it that gives it up, and with it the claim of this revision. What
    /// other nodes have borrowed of it stays theirs.
    pub(crate) fn given_up(self, claim: Revision) -> Self {
        Self { node: String::new(), ended_claim: Some(claim.0), ..self }
    }

    /// The block as a node that has claimed it takes slots of it.
    pub(crate) fn of(self, node: &str) -> Self {
        Self { node: node.to_owned(), ended_claim: None, ..self }
    }

    /// Whether its node gave it up. Whose it is from then on, only its affinity says.
    pub(crate) fn is_given_up(&self) -> bool {
        self.node.is_empty()
    }

    /// The address that has been free longest: one that was never out, else the first of the queue.
    pub(crate) fn vacancy(&self, usable: impl Fn(IpAddr) -> bool) -> Option<Vacancy> {
        let free = |ip: &IpAddr| usable(*ip) && !self.taken.contains_key(ip);
        let were_out: BTreeSet<IpAddr> = self.released.iter().map(|released| released.ip).collect();
        let untouched = addresses(&self.cidr).find(|ip| free(ip) && !were_out.contains(ip));
        if let Some(ip) = untouched {
            return Some(Vacancy { ip, released_at_ms: None });
        }
        let first = self.released.iter().find(|released| free(&released.ip))?;
        Some(Vacancy { ip: first.ip, released_at_ms: Some(first.at_ms) })
    }

    /// Number of slots nobody holds, whether or not their addresses are usable.
    pub(crate) fn vacant_slots(&self) -> usize {
        addresses(&self.cidr).filter(|ip| !self.taken.contains_key(ip)).count()
    }

    pub(crate) fn take(&mut self, ip: IpAddr, allocation: Allocation) {
        self.released.retain(|released| released.ip != ip);
        self.taken.insert(ip, allocation);
    }

    /// What the assignment behind `handle` holds here.
    pub(crate) fn held_by(&self, handle: &Handle) -> Vec<IpAddr> {
        let held = self.taken.iter().filter(|(_, allocation)| allocation.is_of(handle));
        held.map(|(ip, _)| *ip).collect()
    }

    /// Gives the addresses back, to the end of the queue.
    pub(crate) fn give_back(&mut self, ips: &[IpAddr], at_ms: u64) {
        for ip in ips {
            self.taken.remove(ip);
            self.released.push(Released { ip: *ip, at_ms });
        }
    }
}

impl Allocation {
    fn is_of(&self, handle: &Handle) -> bool {
        self.assignment == handle.assignment && self.attachment == handle.attachment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_into_use_in_the_order_of_their_release() {
        let mut block = Block::new("10.0.0.0/30".parse().unwrap(), "a");
        let mut order = Vec::new();
        for _ in 0..4 {
            let vacancy = block.vacancy(|_| true).unwrap();
            assert_eq!(vacancy.released_at_ms, None);
            order.push(vacancy.ip);
            block.take(vacancy.ip, allocation());
        }
        assert_eq!(block.vacancy(|_| true), None);

        block.give_back(&[order[2]], 1);
        block.give_back(&[order[0]], 2);

        let first = block.vacancy(|_| true).unwrap();
        assert_eq!((first.ip, first.released_at_ms), (order[2], Some(1)));
        block.take(first.ip, allocation());
        assert_eq!(block.vacancy(|_| true).unwrap().ip, order[0]);
    }

    #[test]
    fn a_block_reads_back_and_is_readable() {
        let mut block = Block::new("10.0.0.0/30".parse().unwrap(), "a");
        block.take("10.0.0.1".parse().unwrap(), allocation());
        block.give_back(&["10.0.0.2".parse().unwrap()], 7);

        let json = serde_json::to_string(&block).unwrap();

        assert!(json.contains(r#""taken":{"10.0.0.1":{"attachment":"n/c/eth0""#), "{json}");
        assert_eq!(serde_json::from_str::<Block>(&json).unwrap(), block);
    }

    #[test]
    fn a_queue_that_somebody_edited_gives_no_taken_address() {
        let mut block = Block::new("10.0.0.0/31".parse().unwrap(), "a");
        let ip = "10.0.0.0".parse().unwrap();
        block.take(ip, allocation());
        block.take("10.0.0.1".parse().unwrap(), allocation());
        block.released.push(Released { ip, at_ms: 1 });

        assert_eq!(block.vacancy(|_| true), None);
        assert_eq!(block.vacant_slots(), 0);
    }

    fn allocation() -> Allocation {
        Allocation {
            attachment: Attachment::new("n", "c", "eth0").unwrap(),
            assignment: "1".into(),
            pod: None,
            netns: None,
            node: "a".into(),
            boot_id: "b".into(),
            assigned_at: 0,
        }
    }
}
