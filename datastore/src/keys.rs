//! Where every record lives. The one place that builds keys.
//!
//! | key | record |
//! | --- | --- |
//! | `nodes/<node>` | the boot whose allocations are current |
//! | `alive/<node>` | that the node's agent runs, written again and again |
//! | `pools/<range>` | a pool that addresses were asked from |
//! | `affinities/<family>/<block>` | the claim of a node on a block |
//! | `open/<node>/<family>/<block>` | hint: this block of the node has free slots |
//! | `blocks/<family>/<block>` | the block's taken slots and its queue of released ones |
//! | `placements/<family>/<block>` | what of the block other nodes have to know |
//! | `handles/<network>/<container ID>/<ifname>` | the blocks that the attachment may hold slots in |
//! | `endpoints/<network>/<container ID>/<ifname>` | the workload endpoint |
//! | `on/<node>/<key of a handle or an endpoint>` | without a value: that record is of this node |
//!
//! Records of attachments are found by the attachment alone. What is of a node is found by `on/<node>/`, which is
//! written and removed in one change with the record. So is the placement with its block.
//!
//! A range is written `10.244.0.0-26`, since `/` separates the parts of a key. Blocks do not carry
//! their pool in the key, so a pool can grow or be split while its addresses are out.

use ipnetwork::IpNetwork;

use crate::Attachment;
use crate::ipam::Family;

pub(crate) const NODES: &str = "nodes/";
pub(crate) const ALIVE: &str = "alive/";
pub(crate) const POOLS: &str = "pools/";
pub(crate) const BLOCKS: &str = "blocks/";
pub(crate) const PLACEMENTS: &str = "placements/";
pub(crate) const HANDLES: &str = "handles/";
pub(crate) const OPEN: &str = "open/";
pub(crate) const ON: &str = "on/";
pub(crate) const ENDPOINTS: &str = "endpoints/";

pub(crate) fn node(name: &str) -> String {
    format!("{NODES}{}", part(name))
}

pub(crate) fn alive(node: &str) -> String {
    format!("{ALIVE}{}", part(node))
}

/// Where it is told that the record under `key` is of this node.
pub(crate) fn on(node: &str, key: &str) -> String {
    format!("{}{key}", on_node(node))
}

/// Everything that is told of what this node has.
pub(crate) fn on_node(node: &str) -> String {
    format!("{ON}{}/", part(node))
}

/// Whether a key below `on/` tells of the record under `key`, of whatever node that is.
pub(crate) fn is_on(mark: &str, key: &str) -> bool {
    let of_node = mark.strip_prefix(ON).and_then(|of_node| of_node.split_once('/'));
    of_node.is_some_and(|(_, marked)| marked == key)
}

pub(crate) fn endpoint(attachment: &Attachment) -> String {
    format!("{ENDPOINTS}{attachment}")
}

pub(crate) fn endpoints(network: &str) -> String {
    format!("{ENDPOINTS}{}/", part(network))
}

pub(crate) fn handle(attachment: &Attachment) -> String {
    format!("{HANDLES}{attachment}")
}

pub(crate) fn handles(network: &str) -> String {
    format!("{HANDLES}{}/", part(network))
}

pub(crate) fn pool(range: &IpNetwork) -> String {
    format!("{POOLS}{}", slice(range))
}

pub(crate) fn block(block: &IpNetwork) -> String {
    format!("{}{}", blocks(Family::of(block)), slice(block))
}

pub(crate) fn blocks(family: Family) -> String {
    format!("{BLOCKS}{family}/")
}

pub(crate) fn placement(block: &IpNetwork) -> String {
    format!("{}{}", placements(Family::of(block)), slice(block))
}

pub(crate) fn placements(family: Family) -> String {
    format!("{PLACEMENTS}{family}/")
}

pub(crate) fn affinity(block: &IpNetwork) -> String {
    format!("{}{}", affinities(Family::of(block)), slice(block))
}

pub(crate) fn affinities(family: Family) -> String {
    format!("affinities/{family}/")
}

pub(crate) fn open(node: &str, block: &IpNetwork) -> String {
    format!("{}{}", open_of(node, Family::of(block)), slice(block))
}

pub(crate) fn open_of(node: &str, family: Family) -> String {
    format!("{OPEN}{}/{family}/", part(node))
}

fn slice(range: &IpNetwork) -> String {
    format!("{}-{}", range.ip(), range.prefix())
}

/// The range that [`slice()`] wrote.
pub(crate) fn slice_of(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.rsplit_once('-')?;
    IpNetwork::new(ip.parse().ok()?, prefix.parse().ok()?).ok()
}

/// A name as one part of a key. Node names come from the host and network names of GC and STATUS
/// from the configuration; neither is an [`Attachment`]'s validated part.
fn part(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}
