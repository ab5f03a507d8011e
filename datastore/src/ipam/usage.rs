//! How full the pools are.

use std::collections::HashSet;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block};
use super::pool::{Family, Pool};
use super::pools::is_closed;
use super::{Ipam, IpamError, PoolUsage};
use crate::keys;

impl Ipam<'_> {
    /// Whether each pool can give this node another address, in the order given. Made for STATUS:
    /// it writes nothing, and its cost does not grow with the addresses that are out unless the
    /// pool is full.
    pub fn has_free(&self, pools: &[Pool], strict_affinity: bool) -> Result<Vec<bool>, IpamError> {
        let known = self.store.pools()?;
        let has_free =
            |pool| Ok(!is_closed(pool, &known) && self.pool_has_free(pool, strict_affinity)?);
        pools.iter().map(has_free).collect()
    }

    /// How full each pool is, exactly. Reads every block of the families that the pools are of.
    pub fn usage(&self, pools: &[Pool]) -> Result<Vec<PoolUsage>, IpamError> {
        let mut usage: Vec<PoolUsage> = pools
            .iter()
            .map(|pool| PoolUsage { pool: pool.cidr, capacity: pool.capacity(), used: 0 })
            .collect();
        for family in [Family::V4, Family::V6] {
            if !pools.iter().any(|pool| Family::of(&pool.cidr) == family) {
                continue;
            }
            for block in self.store.read_all::<Block>(&keys::blocks(family))? {
                for ip in block.taken.keys() {
                    let its_pool = usage.iter_mut().find(|usage| usage.pool.contains(*ip));
                    its_pool.into_iter().for_each(|usage| usage.used += 1);
                }
            }
        }
        Ok(usage)
    }

    fn pool_has_free(&self, pool: &Pool, strict_affinity: bool) -> Result<bool, IpamError> {
        if !pool.is_open() {
            return Ok(false);
        }
        let family = Family::of(&pool.cidr);
        if self.hints_know_of_free(pool, true)? || self.has_claimable(pool)? {
            return Ok(true);
        }
        if !strict_affinity && self.hints_know_of_free(pool, false)? {
            return Ok(true);
        }
        Ok(self.search(family, &[pool], strict_affinity)?.is_some())
    }

    /// Whether a block that nobody has claimed has a free address: of one that was given up, others may have
    /// borrowed all.
    fn has_claimable(&self, pool: &Pool) -> Result<bool, IpamError> {
        let has_vacancy = |block: &Block| block.vacancy(|ip| pool.hands_out(ip)).is_some();
        let Some(first) = self.unclaimed(pool)? else { return Ok(false) };
        let written = self.read_block(&first)?.map(|stored| stored.record);
        if has_vacancy(&written.unwrap_or_else(|| Block::new(first, ""))) {
            return Ok(true);
        }
        let family = Family::of(&pool.cidr);
        let claims = self.store.read_all::<Affinity>(&keys::affinities(family))?.into_iter();
        let blocks = self.store.read_all::<Block>(&keys::blocks(family))?.into_iter();
        let full = blocks.filter(|block| !has_vacancy(block)).map(|block| block.cidr);
        let out: HashSet<IpNetwork> = claims.map(|claim| claim.block).chain(full).collect();
        let mut all = (0..pool.block_count()).map(|index| pool.block_at(index));
        Ok(all.any(|block| !out.contains(&block) && has_vacancy(&Block::new(block, ""))))
    }

    fn hints_know_of_free(&self, pool: &Pool, own_only: bool) -> Result<bool, IpamError> {
        for hint in self.hints(Family::of(&pool.cidr), own_only, None)? {
            let open = hint.record;
            if !pool.owns(&open.block) {
                continue;
            }
            let block = self.read_block(&open.block)?.map(|stored| stored.record);
            let is_theirs = |block: &Block| block.node == open.node;
            if block.filter(is_theirs).is_some_and(|b| b.vacancy(|ip| pool.hands_out(ip)).is_some())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
