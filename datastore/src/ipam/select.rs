//! Which block an address comes from.
//!
//! The usual case costs two reads whatever the number of addresses out: the first hint under
//! `open/<node>/` and the block it names. Claiming a block costs a number of reads that grows with
//! the logarithm of the blocks claimed. Only when the hints know of no free slot at all is every
//! block read, before [`IpamError::Exhausted`] is said.

use std::collections::HashSet;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block, Open, Vacancy};
use super::clock::now_ms;
use super::placement::AsRead;
use super::pool::{Family, Pool};
use super::{Ipam, IpamError};
use crate::backend::{Revision, Unchanged};
use crate::keys;
use crate::store::{StoreError, Stored, decode};

/// Hints looked at before all of them are.
const FIRST_HINTS: usize = 8;

/// A block as it was read, to take slots from.
#[derive(Clone)]
pub(super) struct Target<'p> {
    pub(super) pool: &'p Pool,
    pub(super) block: Block,
    /// The record under the block's key; `None` if the block was never written.
    pub(super) read: Option<AsRead>,
    /// The hint as it was before the block was read, if it was looked at.
    pub(super) hint: Option<Revision>,
}

impl Target<'_> {
    pub(super) fn vacancy(&self) -> Option<Vacancy> {
        self.block.vacancy(|ip| self.pool.hands_out(ip))
    }
}

/// Whose a block is.
enum Claim {
    /// This node's.
    Of(String),
    /// Nobody's. The affinity of this revision, if there still is one, counts for nothing.
    Ended(Option<Revision>),
}

/// The order of preference.
impl Ipam<'_> {
    /// A block with a free slot: one of this node's with a rested address, a block nobody has,
    /// another node's unless affinity is strict, and at last whatever has rested longest.
    pub(super) fn choose<'p>(
        &self,
        family: Family,
        pools: &[&'p Pool],
        strict_affinity: bool,
    ) -> Result<Target<'p>, IpamError> {
        for &pool in pools {
            if let Some(target) = self.rested(pool)? {
                return Ok(target);
            }
            if let Some(target) = self.claim(pool)? {
                return Ok(target);
            }
        }
        let mut hints = self.hints(family, strict_affinity, None)?;
        let now_ms = now_ms();
        // Rested before resting, then the order of the pools, then own before borrowed.
        hints.sort_by_key(|hint| {
            let open = &hint.record;
            let rested = open.rested_at_ms <= now_ms;
            let pool = pools.iter().position(|pool| pool.owns(&open.block));
            (if rested { 0 } else { open.rested_at_ms }, pool, open.node != self.node)
        });
        for hint in hints {
            let Some(pool) = pools.iter().find(|pool| pool.owns(&hint.record.block)) else {
                continue;
            };
            if let Some(target) = self.follow(pool, &hint)? {
                return Ok(target);
            }
        }
        if let Some(target) = self.search(family, pools, strict_affinity)? {
            let target = match target.block.is_given_up() {
                true => self.claim_block(target.pool, &target.block.cidr)?,
                false => target,
            };
            if target.vacancy().is_some() && (!strict_affinity || target.block.node == self.node) {
                return Ok(target);
            }
        }
        Err(IpamError::Exhausted { pools: pools.iter().map(|pool| pool.cidr).collect() })
    }

    /// A block of this node with a rested address, by the hints.
    fn rested<'p>(&self, pool: &'p Pool) -> Result<Option<Target<'p>>, IpamError> {
        let family = Family::of(&pool.cidr);
        let mut seen = 0;
        for limit in [Some(FIRST_HINTS), None] {
            let hints = self.hints(family, true, limit)?;
            for hint in hints.iter().skip(seen) {
                let open = &hint.record;
                if !pool.owns(&open.block) || open.rested_at_ms > now_ms() {
                    continue;
                }
                if let Some(target) = self.follow(pool, hint)?
                    && target.vacancy().is_some_and(|vacancy| self.has_rested(&vacancy))
                {
                    return Ok(Some(target));
                }
            }
            seen = hints.len();
            if seen < FIRST_HINTS {
                break;
            }
        }
        Ok(None)
    }

    fn has_rested(&self, vacancy: &Vacancy) -> bool {
        vacancy.released_at_ms.is_none_or(|at_ms| self.rested_at_ms(at_ms) <= now_ms())
    }

    pub(super) fn rested_at_ms(&self, released_at_ms: u64) -> u64 {
        let cool_down = u64::try_from(self.cool_down.as_millis()).unwrap_or(u64::MAX);
        released_at_ms.saturating_add(cool_down)
    }

    /// Reads every block: finds slots that a lost hint hides, and blocks that were given up by a
    /// node that died at it. Those are to be claimed first.
    pub(super) fn search<'p>(
        &self,
        family: Family,
        pools: &[&'p Pool],
        strict_affinity: bool,
    ) -> Result<Option<Target<'p>>, IpamError> {
        let mut best: Option<(u64, Target<'p>)> = None;
        let mut written = HashSet::new();
        for (pool, stored) in self.blocks_of(family, pools)? {
            let read = Some(AsRead::from(&stored));
            let block = self.owned(stored.record)?;
            written.insert(block.cidr);
            if strict_affinity && block.node != self.node && !block.is_given_up() {
                continue;
            }
            let target = Target { pool, block, read, hint: None };
            let Some(vacancy) = target.vacancy() else { continue };
            let rank = match vacancy.released_at_ms {
                None => u64::from(target.block.node != self.node),
                Some(at_ms) => at_ms.max(2),
            };
            if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                best = Some((rank, target));
            }
        }
        if let Some((_, target)) = best {
            return Ok(Some(target));
        }
        let affinities = self.store.read_all::<Affinity>(&keys::affinities(family))?;
        Ok(affinities.into_iter().find_map(|affinity| {
            let usable = !strict_affinity || affinity.node == self.node;
            let pool = pools.iter().find(|pool| pool.owns(&affinity.block))?;
            let block = Block::new(affinity.block, &affinity.node);
            let target = Target { pool, block, read: None, hint: None };
            (usable && !written.contains(&affinity.block) && target.vacancy().is_some())
                .then_some(target)
        }))
    }

    /// Every written block of these pools, each with its pool.
    pub(super) fn blocks_of<'p>(
        &self,
        family: Family,
        pools: &[&'p Pool],
    ) -> Result<Vec<(&'p Pool, Stored<Block>)>, IpamError> {
        let mut blocks = Vec::new();
        for versioned in self.store.backend().list(&keys::blocks(family), None)? {
            let stored: Stored<Block> = decode(&versioned)?;
            if let Some(pool) = pools.iter().find(|pool| pool.owns(&stored.record.cidr)) {
                blocks.push((*pool, stored));
            }
        }
        Ok(blocks)
    }
}

/// Claims.
impl Ipam<'_> {
    /// Claims a block of the pool that no node has, if there is one. Ends, since each turn leaves
    /// one block fewer to claim: of a block that names a node without a claim, the claim is made good.
    ///
    /// Who has claimed a block for this node since its hints were read (the first pods of a node, and
    /// its agent, come at once) has left a hint before. So the hints are read again behind the claims:
    /// whoever sees that claim shares the block, and whoever does not, claims the same one.
    fn claim<'p>(&self, pool: &'p Pool) -> Result<Option<Target<'p>>, IpamError> {
        while let Some(block) = self.unclaimed(pool)? {
            if let Some(target) = self.rested(pool)? {
                return Ok(Some(target));
            }
            let target = self.claim_block(pool, &block)?;
            if target.block.node == self.node && target.vacancy().is_some() {
                return Ok(Some(target));
            }
            let affinity = Affinity { block, node: target.block.node };
            won(self.write_affinity(pool, &affinity, None))?;
        }
        Ok(None)
    }

    /// Claims `block` for this node, unless another has it already; then the target is the other's.
    ///
    /// The hint goes first: if the process dies in between, the hint leads the next one to finish
    /// the claim. The block is read before its affinity: a claim can only end by a write of the
    /// block, so whoever then writes the block at the revision that it was read at writes it in the
    /// name of a claim that still holds.
    fn claim_block<'p>(&self, pool: &'p Pool, block: &IpNetwork) -> Result<Target<'p>, IpamError> {
        let hint_key = keys::open(&self.node, block);
        let (mut hint, mut is_hinted) = (None, false);
        loop {
            let found = self.read_block(block)?;
            let read = found.as_ref().map(AsRead::from);
            let found = found.map_or_else(|| Block::new(*block, ""), |stored| stored.record);
            let owner = match self.claimed_by(&found)? {
                Claim::Of(node) => node,
                Claim::Ended(claim) => {
                    let open = Open { block: *block, node: self.node.clone(), rested_at_ms: 0 };
                    let by = self.found_open.get(&pool.cidr);
                    hint = won(self.store.write_if(&hint_key, &open, None, by))?.or(hint);
                    is_hinted = true;
                    match self.write_claim(pool, block, claim) {
                        Ok(true) => self.node.clone(),
                        Ok(false) => continue,
                        Err(error) => {
                            // The pool may be gone, and then nobody follows the hint.
                            if error.is_outdated() && hint.is_some() {
                                won(self.store.remove(&hint_key, hint))?;
                            }
                            return Err(error);
                        }
                    }
                }
            };
            if is_hinted && owner != self.node {
                self.store.remove(&hint_key, None)?;
            }
            let block = found.of(&owner);
            return Ok(Target { pool, block, read, hint });
        }
    }

    /// Claims a block whose claim of revision `ended` is over, or that nobody has claimed; false if
    /// somebody else was faster.
    fn write_claim(
        &self,
        pool: &Pool,
        block: &IpNetwork,
        ended: Option<Revision>,
    ) -> Result<bool, IpamError> {
        let affinity = Affinity { block: *block, node: self.node.clone() };
        Ok(won(self.write_affinity(pool, &affinity, ended))?.is_some())
    }

    fn write_affinity(
        &self,
        pool: &Pool,
        affinity: &Affinity,
        ended: Option<Revision>,
    ) -> Result<Revision, StoreError> {
        let (key, by) = (keys::affinity(&affinity.block), self.found_open.get(&pool.cidr));
        self.store.write_if(&key, affinity, ended, by)
    }

    /// Whose a block is, which was read before.
    fn claimed_by(&self, block: &Block) -> Result<Claim, IpamError> {
        if !block.is_given_up() {
            return Ok(Claim::Of(block.node.clone()));
        }
        let affinity = self.store.read::<Affinity>(&keys::affinity(&block.cidr))?;
        Ok(match affinity {
            None => Claim::Ended(None),
            Some(stored) if block.ended_claim == Some(stored.revision.0) => {
                Claim::Ended(Some(stored.revision))
            }
            Some(stored) => Claim::Of(stored.record.node),
        })
    }

    /// The block with the node that it is claimed by, though the block's record does not say so.
    pub(super) fn owned(&self, block: Block) -> Result<Block, IpamError> {
        Ok(match self.claimed_by(&block)? {
            Claim::Of(node) => block.of(&node),
            Claim::Ended(_) => block,
        })
    }

    /// The first unclaimed block, seen from a place in the pool that differs from node to node.
    ///
    /// A node claims upwards from its place, so the blocks from there are claimed up to some point.
    /// That point is found by steps that double and then by halving: a handful of reads, also in a
    /// pool of 2^64 blocks. Where other nodes' blocks lie in between, it is still a point where a
    /// claimed block is followed by an unclaimed one. If all steps fall on claimed blocks, the
    /// list of claims decides.
    pub(super) fn unclaimed(&self, pool: &Pool) -> Result<Option<IpNetwork>, IpamError> {
        let (count, start) = (pool.block_count(), self.place_in(pool));
        let at = |offset: u64| {
            let index = (u128::from(start) + u128::from(offset)) % u128::from(count);
            pool.block_at(u64::try_from(index).unwrap_or(0))
        };
        let is_claimed = |offset| Ok::<_, IpamError>(self.owner(&at(offset))?.is_some());
        if !is_claimed(0)? {
            return Ok(Some(at(0)));
        }
        let (mut claimed, mut step) = (0, 1);
        while step < count {
            if is_claimed(step)? {
                claimed = step;
                step = step.saturating_mul(2);
                continue;
            }
            let mut unclaimed = step;
            while unclaimed - claimed > 1 {
                let middle = claimed + (unclaimed - claimed) / 2;
                if is_claimed(middle)? { claimed = middle } else { unclaimed = middle }
            }
            return Ok(Some(at(unclaimed)));
        }
        if count == 1 {
            return Ok(None);
        }
        let affinities =
            self.store.read_all::<Affinity>(&keys::affinities(Family::of(&pool.cidr)))?;
        let taken: HashSet<IpNetwork> = affinities.into_iter().map(|a| a.block).collect();
        Ok((0..count).map(at).find(|block| !taken.contains(block)))
    }

    /// The index of the block at which this node starts to claim: FNV-1a over node and pool, the
    /// same on every call.
    fn place_in(&self, pool: &Pool) -> u64 {
        let name = format!("{} {}", self.node, pool.cidr);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash % pool.block_count()
    }

    /// The node that has claimed a block.
    pub(super) fn owner(&self, block: &IpNetwork) -> Result<Option<String>, IpamError> {
        let affinity = self.store.read::<Affinity>(&keys::affinity(block))?;
        Ok(affinity.map(|stored| stored.record.node))
    }
}

/// Blocks as records.
impl Ipam<'_> {
    /// Reads a block, claiming it for this node if nobody has.
    pub(super) fn target<'p>(
        &self,
        pool: &'p Pool,
        block: &IpNetwork,
    ) -> Result<Target<'p>, IpamError> {
        match self.read_block(block)? {
            Some(stored) if !stored.record.is_given_up() => {
                let read = Some(AsRead::from(&stored));
                Ok(Target { pool, block: stored.record, read, hint: None })
            }
            _ => self.claim_block(pool, block),
        }
    }

    /// The target's block as it is at this moment; `None` if it is gone or was given up.
    pub(super) fn read_again<'p>(
        &self,
        target: &Target<'p>,
    ) -> Result<Option<Target<'p>>, IpamError> {
        let read = self.read_block(&target.block.cidr)?;
        let read = read.filter(|stored| !stored.record.is_given_up());
        Ok(read.map(|stored| Target {
            read: Some(AsRead::from(&stored)),
            block: stored.record,
            ..*target
        }))
    }

    pub(super) fn read_block(&self, block: &IpNetwork) -> Result<Option<Stored<Block>>, IpamError> {
        Ok(self.store.read::<Block>(&keys::block(block))?)
    }

    /// Writes a block if it is still as it was read; false if it is not.
    pub(super) fn write_block(
        &self,
        block: &Block,
        read: Option<&AsRead>,
        unchanged: Option<&Unchanged>,
    ) -> Result<bool, IpamError> {
        Ok(won(self.store.write_block(block, read, unchanged))?.is_some())
    }

    /// The same by who takes no slot. A block that was never written is written only as long as the claim
    /// on it is there, which goes when its pool is deleted.
    pub(super) fn rewrite_block(
        &self,
        block: &Block,
        read: Option<&AsRead>,
        claim: Option<Revision>,
    ) -> Result<bool, IpamError> {
        let key = keys::affinity(&block.cidr);
        let claim = claim.filter(|_| read.is_none()).map(|since| Unchanged { key, since });
        match self.write_block(block, read, claim.as_ref()) {
            Err(error) if error.is_outdated() => Ok(false),
            written => written,
        }
    }
}

/// `None` if somebody else was faster.
pub(crate) fn won<T>(outcome: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(StoreError::Backend(error)) if error.is_lost_race() => Ok(None),
        Err(error) => Err(error),
    }
}
