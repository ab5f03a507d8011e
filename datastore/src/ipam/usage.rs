//! How full the pools are, and taking a pool out of use.

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block};
use super::pool::{Family, Pool};
use super::{Ipam, IpamError, PoolUsage};
use crate::keys;
use crate::store::{Stored, decode};

impl Ipam<'_> {
    /// Whether each pool can give this node another address, in the order given. Made for STATUS:
    /// it writes nothing, and its cost does not grow with the addresses that are out unless the
    /// pool is full.
    pub fn has_free(&self, pools: &[Pool], strict_affinity: bool) -> Result<Vec<bool>, IpamError> {
        pools.iter().map(|pool| self.pool_has_free(pool, strict_affinity)).collect()
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

    /// Forgets a pool that has no addresses out, with its blocks, so that it can come back with
    /// another block size. For moments when nobody assigns from it.
    pub fn remove_pool(&self, pool: &IpNetwork) -> Result<(), IpamError> {
        let family = Family::of(pool);
        let mut blocks = Vec::new();
        for versioned in self.store.backend().list(&keys::blocks(family), None)? {
            let stored: Stored<Block> = decode(&versioned)?;
            if pool.contains(stored.record.cidr.ip()) {
                blocks.push((versioned.key, stored));
            }
        }
        let used: usize = blocks.iter().map(|(_, stored)| stored.record.taken.len()).sum();
        if used > 0 {
            return Err(IpamError::PoolInUse { pool: *pool, used: used as u64 });
        }
        for (key, stored) in blocks {
            self.store.remove(&key, Some(stored.revision))?;
        }
        for affinity in self.store.read_all::<Affinity>(&keys::affinities(family))? {
            if pool.contains(affinity.block.ip()) {
                self.store.remove(&keys::open(&affinity.node, &affinity.block), None)?;
                self.store.remove(&keys::affinity(&affinity.block), None)?;
            }
        }
        self.store.remove(&keys::pool(pool), None)?;
        Ok(())
    }

    fn pool_has_free(&self, pool: &Pool, strict_affinity: bool) -> Result<bool, IpamError> {
        if pool.disabled {
            return Ok(false);
        }
        let family = Family::of(&pool.cidr);
        if self.hints_know_of_free(pool, true)? || self.unclaimed(pool)?.is_some() {
            return Ok(true);
        }
        if !strict_affinity && self.hints_know_of_free(pool, false)? {
            return Ok(true);
        }
        Ok(self.search(family, &[pool], strict_affinity)?.is_some())
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
