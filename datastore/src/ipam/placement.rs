//! Where the addresses of a block are, for those who route to them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::block::outside;
use super::pool::block_defect;
use crate::keys;
use crate::store::Record;

/// A block as a router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The block's range.
    pub cidr: IpNetwork,
    /// The node that has the block: where its addresses are unless they are borrowed. Empty if it gave the
    /// block up and others still have addresses of it.
    pub node: String,
    /// How many of its addresses are out.
    pub taken: usize,
    /// The addresses that are on another node, and on which.
    pub borrowed: BTreeMap<IpAddr, String>,
}

/// The record of a block as far as a router reads it. A node hears of every pod of the cluster by the
/// record of a whole block, so what it does not need is not made into anything.
#[derive(Deserialize)]
pub(crate) struct Outline {
    cidr: IpNetwork,
    node: String,
    taken: BTreeMap<IpAddr, Holder>,
}

/// Of an allocation.
#[derive(Deserialize)]
struct Holder {
    node: String,
}

impl Outline {
    /// Whether its node gave it up, and nobody has an address of it: see [`Block`](super::block::Block).
    pub(crate) fn is_nobodys(&self) -> bool {
        self.node.is_empty() && self.taken.is_empty()
    }
}

impl Record for Outline {
    fn key(&self) -> String {
        keys::block(&self.cidr)
    }

    fn defect(&self) -> Option<String> {
        block_defect(&self.cidr).or_else(|| outside(&self.cidr, self.taken.keys()))
    }
}

impl From<Outline> for Placement {
    fn from(Outline { cidr, node, taken }: Outline) -> Self {
        let out = taken.len();
        let elsewhere = taken.into_iter().filter(|(_, holder)| holder.node != node);
        let borrowed = elsewhere.map(|(ip, holder)| (ip, holder.node)).collect();
        Self { cidr, node, taken: out, borrowed }
    }
}
