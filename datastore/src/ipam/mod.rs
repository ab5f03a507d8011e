//! Address management: pools cut into blocks, blocks claimed by nodes, slots taken by attachments.
//!
//! **An address is allocated by one write of one block**, by compare-and-swap, so no address can be
//! given twice whatever else goes wrong. Everything around that write is there so that what was
//! allocated is found again from the attachment alone, after a crash at any point:
//!
//! | step of `assign` | a crash after it leaves | why that is safe |
//! | --- | --- | --- |
//! | 1. store the pools | a pool record | it is the configuration's |
//! | 2. only when a block is claimed: hint `open/…` | a hint for a block nobody has | following it finishes the claim |
//! | 3. and affinity `affinities/…` | a claimed, unwritten block | the hint leads to it |
//! | 4. handle `handles/…`, naming the blocks | a handle without slots | release finds nothing there, and removes it |
//! | 5. block `blocks/…`, once per family | slots, all in blocks the handle names | release gives them back |
//! | 6. hint brought up to date | a hint for a full block | who follows it removes it |
//!
//! | step of `release` | a crash after it leaves | why that is safe |
//! | --- | --- | --- |
//! | 1. only if a slot is missing: mark the handle | a marked handle | the next release goes on |
//! | 2. only if the block was full: hint `open/…` | a hint for a full block | who follows it removes it |
//! | 3. blocks, without the slots | a handle that names blocks without slots | the next release goes on |
//! | 4. remove the handle | – | done |
//!
//! | step of `tend_blocks`, of one that is empty | a crash after it leaves | why that is safe |
//! | --- | --- | --- |
//! | 1. block `blocks/…`: given up, with the revision of the claim that ends | an affinity that counts for nothing | whoever needs a block replaces it, and the next call removes it |
//! | 2. remove affinity `affinities/…` | a hint for a block nobody has | following it claims the block anew |
//! | 3. remove hint `open/…` | – | done |
//!
//! A node that is gone for good gives its blocks up in the same steps, by whoever removes it (`leave.rs`),
//! but for a difference: slots that others have borrowed stay in them.
//!
//! A block that was written stays a record as long as its pool. Were it removed, an assignment that had found
//! it missing, before it was ever written, could write it in the name of a claim that is over; and
//! affinities would not tell a claim from what is left of an older one.
//!
//! A pool that is deleted takes its blocks and claims along (`pools.rs`). For that it is closed first, and an
//! assignment writes a claim or a slot only while the pool's record is as it was before the block was
//! read. So what is found after the closing is all that there is, and nothing comes after it.
//!
//! So a taken slot always has a handle that names its block. A release that meets an assignment
//! half-way (steps 4 and 5) must not remove the handle and leave the other to write a slot that
//! nobody finds: it marks the handle and then rewrites each block. An assignment reads a block,
//! then looks at its handle, then writes the block; either it sees the mark, or its write loses to
//! the rewriting and it sees the mark on the second look.
//!
//! What other nodes have to know of a block is written in the same change as the block (`placement.rs`), so it adds no step.
//!
//! Speed is in `select.rs`, the upkeep of hints in `hints.rs`. Hints can be lost or wrong; before
//! [`IpamError::Exhausted`] every block is read.

mod assign;
mod block;
mod clock;
mod empty;
mod error;
mod hints;
mod leave;
mod ledger;
mod placement;
mod pool;
mod pools;
mod release;
mod select;
mod usage;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::Attachment;
use crate::backend::Unchanged;
use crate::records::PodRef;
use crate::store::Store;

pub use empty::TendedBlocks;
pub use error::IpamError;
pub use ledger::{BlockEntry, Holder, Ledger, Slot};
pub use placement::Placement;
pub(crate) use pool::Family;
pub use pool::{Encapsulation, Pool, PoolError};
pub use release::Holding;
pub(crate) use select::won;

/// How long a released address rests before it is handed out again, while there are others.
pub const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(30);

/// What an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignRequest {
    /// Who the addresses are for.
    pub attachment: Attachment,
    /// The pod, if the runtime named one; kept with the addresses for people to read.
    pub pod: Option<PodRef>,
    /// Path of the network namespace, by which [`Ipam::reclaim_earlier_boots`] judges.
    pub netns: Option<String>,
    /// The pools to take from, both families mixed, the preferred ones first.
    pub pools: Vec<Pool>,
    /// Whether one IPv4 address is wanted.
    pub ipv4: bool,
    /// Whether one IPv6 address is wanted.
    pub ipv6: bool,
    /// Addresses that are wanted by number. They stand in for the free choice in their family.
    pub requested: Vec<IpAddr>,
    /// Whether only blocks of this node may be used.
    pub strict_affinity: bool,
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// The pool.
    pub pool: IpNetwork,
    /// Number of addresses it can hand out at all.
    pub capacity: u128,
    /// Number of addresses that are out.
    pub used: u128,
}

impl PoolUsage {
    /// Number of addresses left.
    pub fn free(&self) -> u128 {
        self.capacity.saturating_sub(self.used)
    }
}

/// Address management as one node in one boot sees it.
#[derive(Clone)]
pub struct Ipam<'a> {
    store: &'a Store,
    node: String,
    boot_id: String,
    cool_down: Duration,
    /// Of an assignment, the pools that are not closed, each with the record that it was found by: claims
    /// and slots are written as long as that is unchanged.
    found_open: BTreeMap<IpNetwork, Unchanged>,
}

impl<'a> Ipam<'a> {
    /// Address management for `node`, whose kernel's boot ID is `boot_id`.
    pub fn new(store: &'a Store, node: &str, boot_id: &str) -> Self {
        let (node, boot_id) = (node.to_owned(), boot_id.to_owned());
        let (cool_down, found_open) = (DEFAULT_COOL_DOWN, BTreeMap::new());
        Self { store, node, boot_id, cool_down, found_open }
    }

    /// Replaces [`DEFAULT_COOL_DOWN`].
    #[must_use]
    pub fn cool_down(mut self, cool_down: Duration) -> Self {
        self.cool_down = cool_down;
        self
    }
}

#[cfg(test)]
mod tests;
