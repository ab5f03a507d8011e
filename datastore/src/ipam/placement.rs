//! Where the addresses of a block are, for those who route to them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::Block;

/// A block as a router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The block's range.
    pub cidr: IpNetwork,
    /// The node that has the block: where its addresses are unless they are borrowed.
    pub node: String,
    /// How many of its addresses are out.
    pub taken: usize,
    /// The addresses that are on another node, and on which.
    pub borrowed: BTreeMap<IpAddr, String>,
}

impl From<&Block> for Placement {
    fn from(block: &Block) -> Self {
        let elsewhere = block.taken.iter().filter(|(_, allocation)| allocation.node != block.node);
        Self {
            cidr: block.cidr,
            node: block.node.clone(),
            taken: block.taken.len(),
            borrowed: elsewhere.map(|(ip, allocation)| (*ip, allocation.node.clone())).collect(),
        }
    }
}
