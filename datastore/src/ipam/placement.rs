//! Where the addresses of a block are, for those who route to them.
//!
//! Every node has to know that of every block, and it seldom changes, while a block is written with every pod that
//! comes or goes. So it is a record of its own, which agents follow in place of the block.
//!
//! Invariant: each block has one, and it is what [`Placement::of`] makes of the block. Whoever writes a block in a
//! way that changes it writes it in the same change, and whoever removes a block removes it likewise. Only what a
//! build that knows no placements has written, or somebody by hand, can differ; [`Store::place_block`] mends that.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::IpamError;
use super::block::{Block, outside};
use super::clock::Patience;
use super::pool::{Family, block_defect};
use super::select::won;
use crate::backend::{Along, Revision, Unchanged, Write};
use crate::keys;
use crate::store::{Record, Store, StoreError, Stored, decode, encode, legible};

/// A block as a router sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The block's range.
    pub cidr: IpNetwork,
    /// The node that has the block: where its addresses are unless they are borrowed. Empty if it gave the
    /// block up; others may still have addresses of it.
    pub node: String,
    /// The addresses that are on another node, and on which.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub borrowed: BTreeMap<IpAddr, String>,
}

/// A block's record as it was read: what its next version is compared with.
#[derive(Clone)]
pub(super) struct AsRead {
    pub(super) revision: Revision,
    placement: Placement,
}

impl Placement {
    /// What the block's record says.
    pub(crate) fn of(block: &Block) -> Self {
        let elsewhere = block.taken.iter().filter(|(_, allocation)| allocation.node != block.node);
        let borrowed = elsewhere.map(|(ip, allocation)| (*ip, allocation.node.clone())).collect();
        Self { cidr: block.cidr, node: block.node.clone(), borrowed }
    }

    /// Whether its node gave it up, and nobody has an address of it.
    pub(crate) fn is_nobodys(&self) -> bool {
        self.node.is_empty() && self.borrowed.is_empty()
    }

    fn along(&self) -> Result<Along, StoreError> {
        let key = self.key();
        let value = Some(encode(&key, self)?);
        Ok(Along { key, value })
    }
}

impl Record for Placement {
    fn key(&self) -> String {
        keys::placement(&self.cidr)
    }

    fn defect(&self) -> Option<String> {
        block_defect(&self.cidr).or_else(|| outside(&self.cidr, self.borrowed.keys()))
    }
}

impl From<&Stored<Block>> for AsRead {
    fn from(stored: &Stored<Block>) -> Self {
        Self { revision: stored.revision, placement: Placement::of(&stored.record) }
    }
}

/// Writing and removing blocks.
impl Store {
    /// Writes a block if its record is still as it was read, and so is what the change goes by; `None` is that there
    /// was no record.
    pub(super) fn write_block(
        &self,
        block: &Block,
        before: Option<&AsRead>,
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, StoreError> {
        let (key, placement) = (keys::block(&block.cidr), Placement::of(block));
        let value = encode(&key, block)?;
        let write = Write::after(before.map(|before| before.revision), &value);
        let is_known = before.is_some_and(|before| before.placement == placement);
        let along = if is_known { None } else { Some(placement.along()?) };
        Ok(self.backend().write_if(&key, write, along.as_slice(), unchanged)?)
    }

    /// Removes a block if its record is still as it was read, and so is what the change goes by.
    pub(super) fn remove_block(
        &self,
        block: &IpNetwork,
        revision: Revision,
        unchanged: &Unchanged,
    ) -> Result<Revision, StoreError> {
        let (key, along) = (keys::block(block), [Along::remove(keys::placement(block))]);
        Ok(self.backend().write_if(&key, Write::Delete(Some(revision)), &along, Some(unchanged))?)
    }
}

/// Placements that are not what their blocks say.
impl Store {
    /// Blocks whose placement is not what it should be, and placements of blocks that there are not. Reads every
    /// block.
    pub fn misplaced_blocks(&self) -> Result<Vec<IpNetwork>, StoreError> {
        let mut misplaced = Vec::new();
        for family in [Family::V4, Family::V6] {
            let placements = self.backend().list(&keys::placements(family), None)?;
            let placements: Vec<Placement> = placements.iter().filter_map(legible).collect();
            let mut placements: BTreeMap<IpNetwork, Placement> =
                placements.into_iter().map(|placement| (placement.cidr, placement)).collect();
            let mut suspects = Vec::new();
            for block in self.backend().list(&keys::blocks(family), None)? {
                let Some(block) = legible::<Block>(&block) else { continue };
                if placements.remove(&block.cidr) != Some(Placement::of(&block)) {
                    suspects.push(block.cidr);
                }
            }
            for cidr in suspects.into_iter().chain(placements.into_keys()) {
                if self.is_misplaced(&cidr)? {
                    misplaced.push(cidr);
                }
            }
        }
        Ok(misplaced)
    }

    /// Not taken in by a change between two reads: the block is read before and after its placement.
    fn is_misplaced(&self, cidr: &IpNetwork) -> Result<bool, StoreError> {
        loop {
            let block = match self.read::<Block>(&keys::block(cidr)) {
                // Nobody can tell.
                Err(StoreError::Decode { .. }) => return Ok(false),
                block => block?,
            };
            let placement = self.placement(cidr)?;
            let again = self.backend().get(&keys::block(cidr))?.map(|again| again.revision);
            if block.as_ref().map(|block| block.revision) == again {
                return Ok(placement != block.map(|block| Placement::of(&block.record)));
            }
        }
    }

    /// One that does not decode is as good as none.
    fn placement(&self, cidr: &IpNetwork) -> Result<Option<Placement>, StoreError> {
        let found = self.backend().get(&keys::placement(cidr))?;
        Ok(found.and_then(|found| Some(decode::<Placement>(&found).ok()?.record)))
    }

    /// Sees to it that every block has a placement, and nothing else has, and says of which blocks that was not so.
    /// Reads no block that has one. For an agent before it goes by placements: without, it would take away its routes to
    /// blocks that a build has written which knows none.
    pub fn place_blocks(&self) -> Result<Vec<IpNetwork>, IpamError> {
        let mut placed = Vec::new();
        for family in [Family::V4, Family::V6] {
            let cidrs = |prefix: String| -> Result<HashSet<IpNetwork>, StoreError> {
                let found = self.backend().keys(&prefix)?;
                Ok(found
                    .iter()
                    .filter_map(|key| keys::slice_of(key.strip_prefix(&prefix)?))
                    .collect())
            };
            let placements = cidrs(keys::placements(family))?;
            for cidr in placements.symmetric_difference(&cidrs(keys::blocks(family))?) {
                match self.place_block(cidr) {
                    // A damaged record stops whoever needs it, not the way to all other blocks.
                    Err(IpamError::Store(error @ StoreError::Decode { .. })) => {
                        tracing::warn!(block = %cidr, %error, "left as it is");
                    }
                    outcome => placed.extend(outcome?.then_some(*cidr)),
                }
            }
        }
        Ok(placed)
    }

    /// Has a block's placement be what the block says; false if it is. Whoever writes the block meanwhile loses to this
    /// one, or this one to him.
    pub fn place_block(&self, cidr: &IpNetwork) -> Result<bool, IpamError> {
        let read = |key: &str| self.backend().get(key).map_err(StoreError::from);
        let mut patience = Patience::new();
        loop {
            let block = read(&keys::block(cidr))?;
            let found = read(&keys::placement(cidr))?;
            let written = match (block, found) {
                (None, None) => return Ok(false),
                (None, Some(found)) => self.remove(&found.key, Some(found.revision)).map(drop),
                (Some(block), found) => {
                    let placement = Placement::of(&decode::<Block>(&block)?.record);
                    let found = found.as_ref().and_then(|found| decode::<Placement>(found).ok());
                    if found.is_some_and(|found| found.record == placement) {
                        return Ok(false);
                    }
                    let same = Write::Update(&block.value, block.revision);
                    let written = self.backend().write(&block.key, same, &[placement.along()?]);
                    written.map(drop).map_err(StoreError::from)
                }
            };
            if won(written)?.is_some() {
                return Ok(true);
            }
            patience.conflict()?;
        }
    }

    /// The same, of a block that was read: it is read again only where its placement is not what it should be.
    pub(super) fn place_as_read(&self, block: &Block) -> Result<bool, IpamError> {
        match self.placement(&block.cidr)? == Some(Placement::of(block)) {
            true => Ok(false),
            false => self.place_block(&block.cidr),
        }
    }
}
