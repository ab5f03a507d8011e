//! Pools as records: what the network configurations of all nodes say of them, and what an operator does.
//!
//! Invariant: whether a pool is closed is the operator's, and everything else of its record the
//! configuration's; whoever writes the one leaves the other as it is.

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block};
use super::pool::{Family, Pool, PoolError};
use super::select::won;
use super::{Ipam, IpamError};
use crate::keys;
use crate::store::{Stored, decode};

impl Pool {
    /// The pool with what the operator said of the stored one.
    pub(super) fn as_closed_as(&self, stored: &Self) -> Self {
        Self { closed: stored.closed, ..self.clone() }
    }
}

/// Whether the operator has closed the pool's range, or any part of it, by whatever pool.
pub(super) fn is_closed(pool: &Pool, known: &[Pool]) -> bool {
    known.iter().any(|known| known.closed && known.overlaps(pool))
}

impl Ipam<'_> {
    /// Writes a pool down before any configuration that names it has come to a node. From then on
    /// no node can use the range with blocks of another size.
    pub fn create_pool(&self, pool: &Pool) -> Result<(), IpamError> {
        pool.check()?;
        if let Some(other) = self.store.pools()?.iter().find(|other| other.overlaps(pool)) {
            return Err(PoolError::Overlap { first: other.cidr, second: pool.cidr }.into());
        }
        self.store.create(&keys::pool(&pool.cidr), pool)?;
        Ok(())
    }

    /// Has a pool give no new addresses, whatever configurations say, or as they say again. False if
    /// it was so already.
    pub fn set_pool_closed(&self, pool: &IpNetwork, closed: bool) -> Result<bool, IpamError> {
        let key = keys::pool(pool);
        loop {
            let stored = self.store.read::<Pool>(&key)?;
            let stored = stored.ok_or(IpamError::UnknownPool { pool: *pool })?;
            if stored.record.closed == closed {
                return Ok(false);
            }
            let changed = Pool { closed, ..stored.record };
            if won(self.store.update(&key, &changed, stored.revision))?.is_some() {
                return Ok(true);
            }
        }
    }

    /// Forgets a pool that has no addresses out, with its blocks; one that has stays as it is. It is closed
    /// first, so that nobody begins to assign from it meanwhile; who has begun before does not see that, so this is
    /// for a moment when no pod that takes from it is being made. Comes back, open, with the next assignment
    /// by a configuration that names it.
    pub fn delete_pool(&self, pool: &IpNetwork) -> Result<(), IpamError> {
        let was_open = self.set_pool_closed(pool, true)?;
        let removed = self.remove_pool(pool);
        if removed.is_err() && was_open {
            self.set_pool_closed(pool, false)?;
        }
        removed
    }

    /// Forgets a pool that has no addresses out, with its blocks, so that it can come back with
    /// another block size. For moments when nobody assigns from it.
    fn remove_pool(&self, pool: &IpNetwork) -> Result<(), IpamError> {
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
        for versioned in self.store.backend().list(&keys::affinities(family), None)? {
            let Stored { record: affinity, revision } = decode::<Affinity>(&versioned)?;
            if pool.contains(affinity.block.ip()) {
                self.store.remove(&keys::open(&affinity.node, &affinity.block), None)?;
                self.store.remove(&keys::affinity(&affinity.block), Some(revision))?;
            }
        }
        self.store.remove(&keys::pool(pool), None)?;
        Ok(())
    }

    /// Writes what a configuration says of a pool, and returns that with what the operator said.
    pub(super) fn write_pool(&self, pool: &Pool) -> Result<Pool, IpamError> {
        let key = keys::pool(&pool.cidr);
        loop {
            let stored = self.store.read::<Pool>(&key)?;
            let pool = stored.as_ref().map_or(pool.clone(), |s| pool.as_closed_as(&s.record));
            let written = match stored {
                Some(stored) => self.store.update(&key, &pool, stored.revision),
                None => self.store.create(&key, &pool),
            };
            if won(written)?.is_some() {
                return Ok(pool);
            }
        }
    }
}
