//! Pools as records: what the network configurations of all nodes say of them, and what an operator does.
//!
//! Invariant: whether a pool is closed is the operator's, and everything else of its record the
//! configuration's; whoever writes the one leaves the other as it is.

use std::collections::BTreeMap;
use std::slice;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block};
use super::clock::Patience;
use super::pool::{Family, Pool, PoolError};
use super::select::won;
use super::{Ipam, IpamError};
use crate::backend::{Revision, Unchanged};
use crate::keys;
use crate::store::Stored;

impl Pool {
    /// The pool with what the operator said of the stored one. The first name stays: were it the last, two
    /// configurations that name a range differently would write its record anew with every assignment.
    pub(super) fn as_closed_as(&self, stored: &Self) -> Self {
        let named = if stored.name.is_empty() { self } else { stored };
        Self { closed: stored.closed, name: named.name.clone(), ..self.clone() }
    }

    /// The pool as it is to be written: nameless where another one of the known has its name.
    pub(super) fn without_taken_name(&self, known: &[Stored<Self>]) -> Self {
        let has_its_name = |of: &&Stored<Self>| {
            of.record.cidr != self.cidr && !self.name.is_empty() && of.record.name == self.name
        };
        let Some(Stored { record: other, .. }) = known.iter().find(has_its_name) else {
            return self.clone();
        };
        let (name, pool, of) = (&self.name, self.cidr, other.cidr);
        tracing::warn!(name, %pool, %of, "a configuration gives a pool the name of another: it is not recorded");
        Self { name: String::new(), ..self.clone() }
    }

    /// Refuses a pool whose blocks would lie across those of a known one.
    pub(super) fn check_blocks(&self, known: &[Stored<Self>]) -> Result<(), PoolError> {
        let (cidr, block_size) = (self.cidr, self.effective_block_size());
        let clash =
            |other: &&Self| other.overlaps(self) && other.effective_block_size() != block_size;
        match known.iter().map(|known| &known.record).find(clash) {
            Some(other) => {
                let (stored, stored_block_size) = (other.cidr, other.effective_block_size());
                Err(PoolError::OtherBlockSize { cidr, block_size, stored, stored_block_size })
            }
            None => Ok(()),
        }
    }
}

type Claims = Vec<Stored<Affinity>>;
type Blocks = Vec<Stored<Block>>;

/// Pools that are there and not closed, each with the record that it was found by.
pub(super) type FoundOpen = BTreeMap<IpNetwork, Unchanged>;

/// Whether the operator has closed the pool's range, or any part of it, by whatever pool.
pub(super) fn is_closed<'k>(pool: &Pool, known: impl IntoIterator<Item = &'k Pool>) -> bool {
    known.into_iter().any(|known| known.closed && known.overlaps(pool))
}

/// Those of the pools that are among the known ones and not closed.
pub(super) fn found_open(pools: &[Pool], known: &[Stored<Pool>]) -> FoundOpen {
    let is_wanted = |pool: &Pool| pools.iter().any(|wanted| wanted.cidr == pool.cidr);
    let open = known.iter().filter(|stored| {
        let pool = &stored.record;
        is_wanted(pool) && !is_closed(pool, known.iter().map(|known| &known.record))
    });
    let by = |stored: &Stored<Pool>| {
        let (cidr, since) = (stored.record.cidr, stored.revision);
        (cidr, Unchanged { key: keys::pool(&cidr), since })
    };
    open.map(by).collect()
}

impl Ipam<'_> {
    /// Writes a pool down before any configuration that names it has come to a node. From then on
    /// no node can use the range with blocks of another size.
    pub fn create_pool(&self, pool: &Pool) -> Result<(), IpamError> {
        pool.check()?;
        let known = self.store.pools()?;
        if let Some(other) = known.iter().find(|other| other.overlaps(pool)) {
            return Err(PoolError::Overlap { first: other.cidr, second: pool.cidr }.into());
        }
        let has_its_name = |other: &&Pool| !pool.name.is_empty() && other.name == pool.name;
        if let Some(other) = known.iter().find(has_its_name) {
            return Err(PoolError::Name { name: pool.name.clone(), of: other.cidr }.into());
        }
        self.store.create(&keys::pool(&pool.cidr), pool)?;
        Ok(())
    }

    /// Has a pool give no new addresses, whatever configurations say, or as they say again. False if
    /// it was so already.
    pub fn set_pool_closed(&self, pool: &IpNetwork, closed: bool) -> Result<bool, IpamError> {
        Ok(self.write_closed(pool, closed)?.0)
    }

    /// The same, with the record's revision.
    fn write_closed(&self, pool: &IpNetwork, closed: bool) -> Result<(bool, Revision), IpamError> {
        let key = keys::pool(pool);
        loop {
            let stored = self.store.read::<Pool>(&key)?;
            let stored = stored.ok_or(IpamError::UnknownPool { pool: *pool })?;
            if stored.record.closed == closed {
                return Ok((false, stored.revision));
            }
            let changed = Pool { closed, ..stored.record };
            if let Some(revision) = won(self.store.update(&key, &changed, stored.revision))? {
                return Ok((true, revision));
            }
        }
    }

    /// Forgets a pool that has no addresses out, with its blocks; one that has stays as it is. Comes back, open,
    /// with the next assignment by a configuration that names it, maybe with another block size.
    ///
    /// It is closed first. Claims and slots are written only while their pool's record is as it was before the
    /// block was read. So from then on nobody writes any, and what is found then is all that there is. In
    /// the same way each removal goes by the closed record: who opens it stops the rest.
    ///
    /// One that is in use at first sight is not closed at all, since that would fail every assignment meanwhile.
    pub fn delete_pool(&self, pool: &IpNetwork) -> Result<(), IpamError> {
        if self.store.read::<Pool>(&keys::pool(pool))?.is_some() {
            self.unused_records(pool)?;
        }
        let (was_open, since) = self.write_closed(pool, true)?;
        let outcome = self.delete_closed(pool, since, Patience::new());
        match &outcome {
            Ok(()) | Err(IpamError::PoolEnabled { .. }) => {}
            Err(_) if !was_open => {}
            Err(_) => {
                if let Err(error) = self.set_pool_closed(pool, false) {
                    tracing::warn!(%pool, %error, "a pool that could not be deleted stays disabled");
                }
            }
        }
        outcome
    }

    /// Deletes a pool that is closed, by the record of this revision. Patience is for who is in the way: it is
    /// not lost over what there is to remove.
    pub(super) fn delete_closed(
        &self,
        pool: &IpNetwork,
        since: Revision,
        mut patience: Patience,
    ) -> Result<(), IpamError> {
        let mut closed = Unchanged { key: keys::pool(pool), since };
        loop {
            let mut removed = 0;
            match self.remove_pool(pool, &closed, &mut removed) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.is_outdated() => {}
                Err(error) => return Err(error),
            }
            closed.since = match self.store.read::<Pool>(&closed.key)? {
                Some(Stored { record, revision }) if record.closed => revision,
                Some(_) => return Err(IpamError::PoolEnabled { pool: *pool }),
                // Somebody else has deleted it.
                None => return Ok(()),
            };
            match removed {
                0 => patience.conflict()?,
                _ => patience = Patience::new(),
            }
        }
    }

    /// Removes what the pool has, and counts that, or, if it has nothing, its record: then true.
    fn remove_pool(
        &self,
        pool: &IpNetwork,
        closed: &Unchanged,
        removed: &mut usize,
    ) -> Result<bool, IpamError> {
        self.touch_pools_around(pool)?;
        let (claims, blocks) = self.unused_records(pool)?;
        if claims.is_empty() && blocks.is_empty() {
            return Ok(won(self.store.remove(&closed.key, Some(closed.since)))?.is_some());
        }
        // What somebody has changed meanwhile is looked at again.
        let remove = |key: &str, revision| won(self.store.remove_if(key, revision, closed));
        for Stored { record: block, revision } in blocks {
            let is_gone = won(self.store.remove_block(&block.cidr, revision, closed))?.is_some();
            *removed += usize::from(is_gone);
        }
        for Stored { record: Affinity { block, node }, revision } in claims {
            remove(&keys::open(&node, &block), None)?;
            let is_gone = remove(&keys::affinity(&block), Some(revision))?.is_some();
            *removed += usize::from(is_gone);
        }
        Ok(false)
    }

    /// The claims and blocks of a pool that has no addresses out.
    ///
    /// Claims are looked for before blocks: where there is none, nobody writes a block for the first time.
    fn unused_records(&self, pool: &IpNetwork) -> Result<(Claims, Blocks), IpamError> {
        let family = Family::of(pool);
        let mut claims = self.store.list::<Affinity>(&keys::affinities(family))?;
        claims.retain(|stored| pool.contains(stored.record.block.ip()));
        let mut blocks = self.store.list::<Block>(&keys::blocks(family))?;
        blocks.retain(|stored| pool.contains(stored.record.cidr.ip()));
        let used: usize = blocks.iter().map(|stored| stored.record.taken.len()).sum();
        if used > 0 {
            return Err(IpamError::PoolInUse { pool: *pool, used: used as u64 });
        }
        Ok((claims, blocks))
    }

    /// Writes the pools anew that share addresses with this one, which is closed: whoever has found them
    /// open before takes nothing by that.
    fn touch_pools_around(&self, pool: &IpNetwork) -> Result<(), IpamError> {
        let closed = Pool::new(*pool);
        for Stored { record: other, revision } in self.known_pools()? {
            if other.cidr != *pool && other.overlaps(&closed) {
                // Who is faster has changed it as well.
                won(self.store.update(&keys::pool(&other.cidr), &other, revision))?;
            }
        }
        Ok(())
    }

    /// Every pool that addresses were ever asked from, with the revisions of their records.
    pub(super) fn known_pools(&self) -> Result<Vec<Stored<Pool>>, IpamError> {
        Ok(self.store.list(keys::POOLS)?)
    }

    /// Writes what a configuration says of a pool. `was_there` tells one that is gone from a new one.
    pub(super) fn write_pool(&self, pool: &Pool, was_there: bool) -> Result<(), IpamError> {
        let key = keys::pool(&pool.cidr);
        loop {
            let written = match self.store.read::<Pool>(&key)? {
                Some(stored) => {
                    pool.check_blocks(slice::from_ref(&stored))?;
                    self.store.update(&key, &pool.as_closed_as(&stored.record), stored.revision)
                }
                None if was_there => return Err(IpamError::PoolDeleted { pool: pool.cidr }),
                None => self.store.create(&key, pool),
            };
            if won(written)?.is_some() {
                return Ok(());
            }
        }
    }
}
