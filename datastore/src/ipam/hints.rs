//! The hints under `open/`: which blocks of which node have free slots, and from when on.
//!
//! A hint may be wrong, and nothing but speed depends on it. It is kept from being lost all the
//! same: who takes the last slot of a block removes the hint only as it was **before** the block
//! was read, and who gives a slot back to a full block writes the hint **before** the block. So a
//! removal can never follow the writing it does not know of. A crash in between leaves a hint for
//! a full block, which the next one to follow it removes.

use super::block::{Block, Open};
use super::pool::{Family, Pool};
use super::select::{Target, won};
use super::{Ipam, IpamError};
use crate::keys;
use crate::store::{Stored, decode};

/// The largest number of slots of a block that a pool may not hand out: both ends and the gateway of
/// a pool of one block.
const MOST_RESERVED: usize = 3;

impl Ipam<'_> {
    /// Hints of this node (`own_only`), or of all nodes, for blocks of one family.
    pub(super) fn hints(
        &self,
        family: Family,
        own_only: bool,
        limit: Option<usize>,
    ) -> Result<Vec<Stored<Open>>, IpamError> {
        let prefix =
            if own_only { keys::open_of(&self.node, family) } else { keys::OPEN.to_owned() };
        let listed = self.store.backend().list(&prefix, limit)?;
        let mut hints = Vec::with_capacity(listed.len());
        for versioned in &listed {
            let hint: Stored<Open> = decode(versioned)?;
            if Family::of(&hint.record.block) == family {
                hints.push(hint);
            }
        }
        Ok(hints)
    }

    /// The block that a hint names, if it has a free slot. Otherwise the hint is put right.
    pub(super) fn follow<'p>(
        &self,
        pool: &'p Pool,
        hint: &Stored<Open>,
    ) -> Result<Option<Target<'p>>, IpamError> {
        let Stored { record: open, revision } = hint;
        let key = keys::open(&open.node, &open.block);
        let mut target = self.target(pool, &open.block)?;
        target.hint = Some(*revision);
        let vacancy = target.vacancy().filter(|_| target.block.node == open.node);
        let Some(vacancy) = vacancy else {
            won(self.store.remove(&key, Some(*revision)))?;
            return Ok(None);
        };
        let rested_at_ms = vacancy.released_at_ms.map_or(0, |at_ms| self.rested_at_ms(at_ms));
        if open.rested_at_ms < rested_at_ms {
            let later = Open { rested_at_ms, ..open.clone() };
            target.hint = won(self.store.update(&key, &later, *revision))?;
        }
        Ok(Some(target))
    }

    /// Brings the hint up to date with a block that slots were taken from. The allocation stands,
    /// so a failure is no error.
    pub(super) fn after_take(&self, target: &Target<'_>, written: &Block) {
        let key = keys::open(&written.node, &written.cidr);
        let open =
            |rested_at_ms| Open { block: written.cidr, node: written.node.clone(), rested_at_ms };
        let vacancy = written.vacancy(|ip| target.pool.hands_out(ip));
        let rested_at_ms = vacancy
            .map(|vacancy| vacancy.released_at_ms.map_or(0, |at_ms| self.rested_at_ms(at_ms)));
        let outcome = match (rested_at_ms, target.hint) {
            (None, Some(hint)) => self.store.remove(&key, Some(hint)).map(|_| ()),
            (Some(rested_at_ms), None) => self.store.create(&key, &open(rested_at_ms)).map(|_| ()),
            (Some(rested_at_ms), Some(hint)) if rested_at_ms > 0 => {
                self.store.update(&key, &open(rested_at_ms), hint).map(|_| ())
            }
            (None, None) | (Some(_), Some(_)) => Ok(()),
        };
        if let Err(error) = won(outcome) {
            tracing::debug!(key, %error, "a hint is left outdated");
        }
    }

    /// Makes sure there is a hint for a block that slots are about to be given back to. `before` is
    /// the block as it was read, `after` as it will be written. One that was given up is found without, as
    /// one that nobody has claimed.
    pub(super) fn before_give_back(&self, before: &Block, after: &Block) -> Result<(), IpamError> {
        if after.is_given_up() || before.vacant_slots() > MOST_RESERVED {
            return Ok(());
        }
        let vacancy = after.vacancy(|_| true).and_then(|vacancy| vacancy.released_at_ms);
        let rested_at_ms = vacancy.map_or(0, |at_ms| self.rested_at_ms(at_ms));
        let open = Open { block: after.cidr, node: after.node.clone(), rested_at_ms };
        Ok(self.store.put(&keys::open(&after.node, &after.cidr), &open)?)
    }
}
