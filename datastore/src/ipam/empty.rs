//! What a node's own blocks need now and then: that other nodes know of them what they say, and that those which it
//! does not need any more are given up, so that others can have them.
//!
//! Invariant: a block is given up by one write of it, by compare-and-swap on what was read as empty.
//! So whoever is about to take a slot of it, on this node or on another, loses one of the two races
//! and looks again. The affinity goes after that, and only if it is still the claim that has ended.

use std::collections::{BTreeMap, HashSet};

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block, Open};
use super::clock::now_ms;
use super::placement::AsRead;
use super::pool::{Family, Pool};
use super::select::won;
use super::{Ipam, IpamError};
use crate::backend::Revision;
use crate::keys;
use crate::store::{StoreError, Stored, decode};

/// What [`Ipam::tend_blocks`] did to this node's blocks, and saw in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TendedBlocks {
    /// Those that it gave up.
    pub released: Vec<IpNetwork>,
    /// Those whose placement was not what it should be.
    pub placed: Vec<IpNetwork>,
    /// How many addresses of each this node's own attachments have.
    pub used: BTreeMap<IpNetwork, usize>,
}

/// A claim of this node on a block.
struct Own {
    block: IpNetwork,
    claim: Revision,
    /// `None` if the block was never written.
    stored: Option<Stored<Block>>,
}

impl Own {
    /// Whether the block was given up already, and what comes after that is still to be done.
    fn is_given_up(&self) -> bool {
        let ended = self.stored.as_ref().and_then(|stored| stored.record.ended_claim);
        ended == Some(self.claim.0)
    }
}

impl Ipam<'_> {
    /// Has the placements of this node's blocks be what they should be, and gives up those blocks in which no slot is
    /// taken and every released address has rested.
    ///
    /// One such block of each pool stays, the first, so that the pods that come and go at the edge
    /// of a block do not claim and give up a block each. But not where the pool is disabled or
    /// unknown, nor where all of its blocks are claimed: another node may wait for one.
    ///
    /// Reads the claims of all nodes, and of the blocks this node's alone.
    pub fn tend_blocks(&self) -> Result<TendedBlocks, IpamError> {
        let pools = self.store.pools()?;
        let mut with_spare = HashSet::new();
        let mut tended = TendedBlocks::default();
        for family in [Family::V4, Family::V6] {
            for own in self.own_blocks(family)? {
                if let Some(stored) = &own.stored {
                    let used = stored.record.taken.values().filter(|slot| slot.node == self.node);
                    tended.used.insert(own.block, used.count());
                    if self.store.place_as_read(&stored.record)? {
                        tended.placed.push(own.block);
                        continue;
                    }
                }
                if !self.is_idle(&own) {
                    continue;
                }
                let pool = pools.iter().find(|pool| pool.owns(&own.block));
                if let Some(pool) = pool.filter(|_| !own.is_given_up())
                    && self.needs_a_spare(pool)?
                    && with_spare.insert(pool.cidr)
                {
                    continue;
                }
                if self.give_up(&own)? {
                    tended.released.push(own.block);
                }
            }
        }
        Ok(tended)
    }

    fn needs_a_spare(&self, pool: &Pool) -> Result<bool, IpamError> {
        Ok(pool.is_open() && self.unclaimed(pool)?.is_some())
    }

    fn own_blocks(&self, family: Family) -> Result<Vec<Own>, IpamError> {
        let mut own = Vec::new();
        let listed = self.store.backend().list(&keys::affinities(family), None);
        for versioned in listed.map_err(StoreError::from)? {
            let looked = decode::<Affinity>(&versioned).map_err(IpamError::from).and_then(
                |Stored { record: affinity, revision }| match affinity.node == self.node {
                    true => self.own_block(affinity.block, revision).map(Some),
                    false => Ok(None),
                },
            );
            match looked {
                // A damaged record stops whoever needs it, not the upkeep of all others.
                Err(IpamError::Store(error @ StoreError::Decode { .. })) => {
                    tracing::warn!(claim = versioned.key, %error, "left as it is");
                }
                looked => own.extend(looked?),
            }
        }
        Ok(own)
    }

    fn own_block(&self, block: IpNetwork, claim: Revision) -> Result<Own, IpamError> {
        Ok(Own { block, claim, stored: self.read_block(&block)? })
    }

    fn is_idle(&self, own: &Own) -> bool {
        let has_rested = |at_ms| self.rested_at_ms(at_ms) <= now_ms();
        let is_idle = |block: &Block| {
            block.taken.is_empty() && block.released.iter().all(|slot| has_rested(slot.at_ms))
        };
        own.is_given_up() || own.stored.as_ref().is_none_or(|stored| is_idle(&stored.record))
    }

    /// False if somebody was faster and uses the block.
    fn give_up(&self, own: &Own) -> Result<bool, IpamError> {
        let hint_key = keys::open(&self.node, &own.block);
        let hint = self.store.read::<Open>(&hint_key)?;
        let given_up = Block::new(own.block, &self.node).given_up(own.claim);
        let read = own.stored.as_ref().map(AsRead::from);
        if !own.is_given_up() && !self.rewrite_block(&given_up, read.as_ref(), Some(own.claim))? {
            return Ok(false);
        }
        won(self.store.remove(&keys::affinity(&own.block), Some(own.claim)))?;
        if let Some(hint) = hint {
            won(self.store.remove(&hint_key, Some(hint.revision)))?;
        }
        Ok(true)
    }
}
