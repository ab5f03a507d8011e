//! Giving up blocks that a node does not need any more, so that other nodes can have them.
//!
//! Invariant: a block is given up by one write of it, by compare-and-swap on what was read as empty.
//! So whoever is about to take a slot of it, on this node or on another, loses one of the two races
//! and looks again. The affinity goes after that, and only if it is still the claim that has ended.

use std::collections::HashSet;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block, Open};
use super::clock::now_ms;
use super::pool::{Family, Pool};
use super::select::won;
use super::{Ipam, IpamError};
use crate::backend::Revision;
use crate::keys;
use crate::store::{StoreError, Stored, decode};

/// A claim of this node on a block that holds nothing.
struct Idle {
    block: IpNetwork,
    claim: Revision,
    /// Of the block's record; `None` if it was never written.
    revision: Option<Revision>,
    /// The block was given up already, and what comes after that is still to be done.
    is_given_up: bool,
}

impl Ipam<'_> {
    /// Gives up this node's blocks in which no slot is taken and every released address has rested,
    /// and says which those were.
    ///
    /// One such block of each pool stays, the first, so that the pods that come and go at the edge
    /// of a block do not claim and give up a block each. But not where the pool is disabled or
    /// unknown, nor where all of its blocks are claimed: another node may wait for one.
    ///
    /// Reads the claims of all nodes, and of the blocks this node's alone.
    pub fn release_empty_blocks(&self) -> Result<Vec<IpNetwork>, IpamError> {
        let pools = self.store.pools()?;
        let mut with_spare = HashSet::new();
        let mut released = Vec::new();
        for family in [Family::V4, Family::V6] {
            for idle in self.idle_blocks(family)? {
                let pool = pools.iter().find(|pool| pool.owns(&idle.block));
                if let Some(pool) = pool.filter(|_| !idle.is_given_up)
                    && self.needs_a_spare(pool)?
                    && with_spare.insert(pool.cidr)
                {
                    continue;
                }
                if self.give_up(&idle)? {
                    released.push(idle.block);
                }
            }
        }
        Ok(released)
    }

    fn needs_a_spare(&self, pool: &Pool) -> Result<bool, IpamError> {
        Ok(pool.is_open() && self.unclaimed(pool)?.is_some())
    }

    fn idle_blocks(&self, family: Family) -> Result<Vec<Idle>, IpamError> {
        let mut idle = Vec::new();
        let listed = self.store.backend().list(&keys::affinities(family), None);
        for versioned in listed.map_err(StoreError::from)? {
            let looked = decode::<Affinity>(&versioned).map_err(IpamError::from).and_then(
                |Stored { record: affinity, revision }| match affinity.node == self.node {
                    true => self.idle_block(&affinity.block, revision),
                    false => Ok(None),
                },
            );
            match looked {
                // A damaged record stops whoever needs it, not the upkeep of all others.
                Err(IpamError::Store(error @ StoreError::Decode { .. })) => {
                    tracing::warn!(claim = versioned.key, %error, "left as it is");
                }
                looked => idle.extend(looked?),
            }
        }
        Ok(idle)
    }

    fn idle_block(&self, block: &IpNetwork, claim: Revision) -> Result<Option<Idle>, IpamError> {
        let of = |revision, is_given_up| Idle { block: *block, claim, revision, is_given_up };
        let Some(Stored { record, revision }) = self.read_block(block)? else {
            return Ok(Some(of(None, false)));
        };
        let is_given_up = record.ended_claim == Some(claim.0);
        let is_idle = is_given_up || self.is_idle(&record);
        Ok(is_idle.then(|| of(Some(revision), is_given_up)))
    }

    fn is_idle(&self, block: &Block) -> bool {
        let has_rested = |at_ms| self.rested_at_ms(at_ms) <= now_ms();
        block.taken.is_empty() && block.released.iter().all(|slot| has_rested(slot.at_ms))
    }

    /// False if somebody was faster and uses the block.
    fn give_up(&self, idle: &Idle) -> Result<bool, IpamError> {
        let hint_key = keys::open(&self.node, &idle.block);
        let hint = self.store.read::<Open>(&hint_key)?;
        let given_up = Block::new(idle.block, &self.node).given_up(idle.claim);
        if !idle.is_given_up && !self.rewrite_block(&given_up, idle.revision, Some(idle.claim))? {
            return Ok(false);
        }
        let remove = |key: &str, revision| self.store.remove(key, Some(revision));
        won(remove(&keys::affinity(&idle.block), idle.claim).map_err(StoreError::from))?;
        if let Some(hint) = hint {
            won(remove(&hint_key, hint.revision).map_err(StoreError::from))?;
        }
        Ok(true)
    }
}
