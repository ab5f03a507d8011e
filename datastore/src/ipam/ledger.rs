//! All that address management has written down, for people, and for who looks for contradictions in
//! it.
//!
//! Each record is read at a moment of its own: what a verb is at work on meanwhile may contradict
//! itself. Whoever is about to say so has to look again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Allocation, Block, Handle};
use super::clock::{Patience, now_ms};
use super::placement::AsRead;
use super::pool::{Family, addresses};
use super::{Ipam, IpamError};
use crate::keys;
use crate::records::{Endpoint, PodRef};
use crate::store::{Record, StoreError, Stored, decode};
use crate::{Attachment, Store};

/// Every block, every attachment that has begun to be given addresses, every endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Blocks that were ever used or are claimed, in the order of their keys.
    pub blocks: Vec<BlockEntry>,
    /// Who holds something, or has begun to.
    pub holders: Vec<Holder>,
    /// Every endpoint.
    pub endpoints: Vec<Endpoint>,
    /// Keys of records that do not decode, and why.
    pub illegible: Vec<(String, String)>,
}

/// A block and its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its range.
    pub cidr: IpNetwork,
    /// The node that its record names; none if that gave it up, or the block was never written.
    pub node: Option<String>,
    /// The node that has claimed it by the record of the claim.
    pub claimed_by: Option<String>,
    /// Whether the claim is one that has ended: its node died at giving the block up.
    pub is_claim_ended: bool,
    /// Slots that are taken.
    pub taken: BTreeMap<IpAddr, Slot>,
    /// Addresses that were out before and rest.
    pub released: usize,
    /// Number of its slots.
    pub slots: usize,
}

/// A taken slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Who has the address.
    pub attachment: Attachment,
    /// By which assignment: unique to one call of [`Ipam::assign`].
    pub assignment: String,
    /// The pod, if the runtime named one.
    pub pod: Option<PodRef>,
    /// Path of the network namespace that the address is for, if it was named.
    pub netns: Option<String>,
    /// The node that the attachment is on; another than the block's if the address is borrowed.
    pub node: String,
    /// When, in seconds since the Unix epoch.
    pub assigned_at: u64,
}

/// What finds an attachment's slots again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The attachment.
    pub attachment: Attachment,
    /// Of which assignment.
    pub assignment: String,
    /// The node that it is on.
    pub node: String,
    /// The kernel's boot ID at the time.
    pub boot_id: String,
    /// Path of the network namespace that the addresses are for, if it was named.
    pub netns: Option<String>,
    /// Every block that may have slots of the assignment.
    pub blocks: Vec<IpNetwork>,
    /// A release has begun and has not come to its end.
    pub is_releasing: bool,
}

impl BlockEntry {
    /// The node whose block it is.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        let claim = self.claimed_by.as_deref().filter(|_| !self.is_claim_ended);
        self.node.as_deref().or(claim)
    }
}

impl Ledger {
    /// Who has an address, and in which block.
    #[must_use]
    pub fn slot(&self, ip: IpAddr) -> Option<(&BlockEntry, &Slot)> {
        self.blocks.iter().find_map(|block| Some((block, block.taken.get(&ip)?)))
    }

    /// What an attachment has.
    pub fn slots_of<'l>(
        &'l self,
        attachment: &'l Attachment,
    ) -> impl Iterator<Item = (IpAddr, &'l Slot)> + 'l {
        let slots = self.blocks.iter().flat_map(|block| &block.taken);
        slots.filter(move |(_, slot)| slot.attachment == *attachment).map(|(ip, slot)| (*ip, slot))
    }
}

impl Store {
    /// All that address management has written down, and who should have it. Reads every block.
    pub fn ledger(&self) -> Result<Ledger, StoreError> {
        let mut ledger = Ledger::default();
        for family in [Family::V4, Family::V6] {
            let claims = self.legible_of::<Affinity>(&keys::affinities(family), &mut ledger)?;
            let mut claims: BTreeMap<IpNetwork, (String, u64)> = claims
                .into_iter()
                .map(|(claim, revision)| (claim.block, (claim.node, revision)))
                .collect();
            for (block, _) in self.legible_of::<Block>(&keys::blocks(family), &mut ledger)? {
                let claim = claims.remove(&block.cidr);
                ledger.blocks.push(entry(block, claim));
            }
            let unwritten = claims.into_iter();
            ledger
                .blocks
                .extend(unwritten.map(|(cidr, claim)| entry(Block::new(cidr, ""), Some(claim))));
        }
        let handles = self.legible_of::<Handle>(keys::HANDLES, &mut ledger)?;
        ledger.holders = handles.into_iter().map(|(handle, _)| handle.into()).collect();
        let endpoints = self.legible_of::<Endpoint>(keys::ENDPOINTS, &mut ledger)?;
        ledger.endpoints = endpoints.into_iter().map(|(endpoint, _)| endpoint).collect();
        Ok(ledger)
    }

    /// Those that decode, each with its revision; the others are noted.
    fn legible_of<T: Record>(
        &self,
        prefix: &str,
        ledger: &mut Ledger,
    ) -> Result<Vec<(T, u64)>, StoreError> {
        let mut records = Vec::new();
        for versioned in self.backend().list(prefix, None)? {
            match decode::<T>(&versioned) {
                Ok(stored) => records.push((stored.record, stored.revision.0)),
                Err(StoreError::Decode { key, source }) => {
                    ledger.illegible.push((key, source.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }
}

fn entry(block: Block, claim: Option<(String, u64)>) -> BlockEntry {
    let slots = addresses(&block.cidr).count();
    let is_claim_ended = claim
        .as_ref()
        .is_some_and(|(_, revision)| block.is_given_up() && block.ended_claim == Some(*revision));
    let slot = |(ip, allocation)| {
        let Allocation { attachment, assignment, pod, netns, node, assigned_at, .. } = allocation;
        (ip, Slot { attachment, assignment, pod, netns, node, assigned_at })
    };
    BlockEntry {
        cidr: block.cidr,
        node: Some(block.node).filter(|node| !node.is_empty()),
        claimed_by: claim.map(|(node, _)| node),
        is_claim_ended,
        taken: block.taken.into_iter().map(slot).collect(),
        released: block.released.len(),
        slots,
    }
}

impl From<Handle> for Holder {
    fn from(handle: Handle) -> Self {
        let Handle { attachment, assignment, node, boot_id, netns, blocks, releasing } = handle;
        Self { attachment, assignment, node, boot_id, netns, blocks, is_releasing: releasing }
    }
}

impl Ipam<'_> {
    /// Gives back an address whose slot nothing leads to: no handle of its attachment names this
    /// assignment and this block. Returns whose it was; `None` if the address is free, or held as it should be.
    ///
    /// A slot is read before the handle, and given back by compare-and-swap on what was read. An assignment
    /// writes its handle before its slots, and a release removes its handle after them; so a slot that has not
    /// changed since, without its handle in between, had none all the time.
    pub fn release_orphan(&self, ip: IpAddr) -> Result<Option<Attachment>, IpamError> {
        let mut patience = Patience::new();
        while let Some(stored) = self.block_that_has_taken(ip)? {
            let read = AsRead::from(&stored);
            let block = stored.record;
            let Some(slot) = block.taken.get(&ip) else { break };
            let handle = self.store.read::<Handle>(&keys::handle(&slot.attachment))?;
            let leads_here = |handle: &Handle| {
                handle.assignment == slot.assignment && handle.blocks.contains(&block.cidr)
            };
            if handle.is_some_and(|handle| leads_here(&handle.record)) {
                break;
            }
            let attachment = slot.attachment.clone();
            let mut after = block.clone();
            after.give_back(&[ip], now_ms());
            self.before_give_back(&block, &after)?;
            if self.write_block(&after, Some(&read), None)? {
                return Ok(Some(attachment));
            }
            patience.conflict()?;
        }
        Ok(None)
    }

    fn block_that_has_taken(&self, ip: IpAddr) -> Result<Option<Stored<Block>>, IpamError> {
        let blocks = keys::blocks(Family::of_ip(ip));
        for versioned in self.store.backend().list(&blocks, None).map_err(StoreError::from)? {
            let stored = decode::<Block>(&versioned)?;
            if stored.record.taken.contains_key(&ip) {
                return Ok(Some(stored));
            }
        }
        Ok(None)
    }
}
