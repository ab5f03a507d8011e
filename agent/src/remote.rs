//! What follows from the topology for one node: which way to which pods of others.
//!
//! Arithmetic only. The table is the whole of what is wanted; whoever makes it so, with routes or with
//! maps, compares it with what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use margay_datastore::{Encapsulation, Node, Placement, Pool};

use crate::topology::Topology;

/// Every destination that is wanted, with the way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteTable {
    /// The ways. A longer prefix is an exception from a shorter one.
    pub ways: BTreeMap<IpNetwork, Way>,
    /// Whether VXLAN may come from another node over IPv6. It may where none goes back, by a way without.
    pub vxlan_comes_by_ipv6: bool,
    /// Why something that is known of cannot be reached, for people.
    pub problems: BTreeSet<String>,
}

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A block of this node: what no pod has is nowhere.
    Own,
    /// By the network between the nodes as it is.
    Direct {
        /// The node's address; of IPv4 destinations it may be of IPv6.
        node: IpAddr,
    },
    /// In VXLAN.
    Overlay(Peer),
}

/// Another node's end of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the network between the nodes.
    pub node: IpAddr,
    /// MAC address of its device.
    pub mac: [u8; 6],
}

impl Peer {
    /// What stands for the node as a router on the overlay device.
    #[must_use]
    pub fn gateway(&self, to: &IpNetwork) -> IpAddr {
        match self.node {
            IpAddr::V4(_) if to.is_ipv4() => self.node,
            _ => IpAddr::V6(link_local(self.mac)),
        }
    }
}

impl RemoteTable {
    /// What is wanted on the node `own`, which has these addresses on the network between the nodes.
    #[must_use]
    pub fn of(topology: &Topology, own: &str, addresses: &[IpNetwork]) -> Self {
        let view = View {
            own,
            addresses,
            nodes: topology.nodes.values().map(|node| (node.name.as_str(), node)).collect(),
            pools: topology.pools.values().collect(),
        };
        let vxlan_comes_by_ipv6 = topology.nodes.values().any(|node| {
            let is_another = node.name != own && node.overlay.is_some();
            is_another && view.tunnel(node).is_some_and(|address| address.is_ipv6())
        });
        let mut table = Self { vxlan_comes_by_ipv6, ..Self::default() };
        for block in topology.blocks.values() {
            view.add_block(block, &mut table);
        }
        table
    }

    /// The ways to the nodes that are reached through the overlay, by their addresses of a family.
    pub fn peers(&self, ipv4: bool) -> impl Iterator<Item = (&IpNetwork, &Peer)> {
        self.ways.iter().filter_map(move |(destination, way)| match way {
            Way::Overlay(peer) if peer.node.is_ipv4() == ipv4 => Some((destination, peer)),
            _ => None,
        })
    }
}

/// Everything as one node sees it.
struct View<'a> {
    own: &'a str,
    addresses: &'a [IpNetwork],
    nodes: BTreeMap<&'a str, &'a Node>,
    pools: Vec<&'a Pool>,
}

impl View<'_> {
    fn add_block(&self, block: &Placement, table: &mut RemoteTable) {
        // All of it: a larger block would lead packets away that are for no pod.
        let holding = |pool: &&&Pool| {
            pool.cidr.contains(block.cidr.ip()) && pool.cidr.prefix() <= block.cidr.prefix()
        };
        let pool = self.pools.iter().filter(holding).max_by_key(|pool| pool.cidr.prefix());
        let Some(pool) = pool else {
            table.problems.insert(format!("block {} is of no pool", block.cidr));
            return;
        };
        if !block.node.is_empty() {
            self.add(block.cidr, &block.node, pool, table);
        }
        for (ip, node) in &block.borrowed {
            // What is on this node has a route of its own, from the ADD.
            if node != self.own {
                self.add(IpNetwork::from(*ip), node, pool, table);
            }
        }
    }

    fn add(&self, destination: IpNetwork, node: &str, pool: &Pool, table: &mut RemoteTable) {
        if node == self.own {
            table.ways.insert(destination, Way::Own);
            return;
        }
        let way = match self.nodes.get(node) {
            Some(node) => self.way(node, pool),
            None => Err("has no record"),
        };
        match way {
            Ok(way) => drop(table.ways.insert(destination, way)),
            Err(reason) => {
                let kind = if pool.cidr.is_ipv4() { "IPv4" } else { "IPv6" };
                table.problems.insert(format!("no way to {kind} pods of node {node}: it {reason}"));
            }
        }
    }

    fn way(&self, node: &Node, pool: &Pool) -> Result<Way, &'static str> {
        let direct = direct_address(node, pool.cidr.is_ipv4());
        match pool.encapsulation {
            Encapsulation::Vxlan => self.overlay(node),
            Encapsulation::None => match direct {
                Some(node) => Ok(Way::Direct { node }),
                None => Err("has no address that routes could go by, and its pool no VXLAN"),
            },
            Encapsulation::VxlanCrossSubnet => match direct {
                Some(direct) if self.shares_subnet_with(direct) => Ok(Way::Direct { node: direct }),
                _ => self.overlay(node),
            },
        }
    }

    fn shares_subnet_with(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(address))
    }

    fn overlay(&self, node: &Node) -> Result<Way, &'static str> {
        let end = node.overlay.as_ref().ok_or("is not on the overlay yet")?;
        let address = self.tunnel(node).ok_or("has no address of a family that this node has")?;
        Ok(Way::Overlay(Peer { node: address, mac: end.mac }))
    }

    /// IPv4 between the nodes if both have it: its headers are the shorter ones.
    fn tunnel(&self, node: &Node) -> Option<IpAddr> {
        let address = [true, false].into_iter().find_map(|ipv4| {
            self.addresses.iter().find(|own| own.is_ipv4() == ipv4)?;
            node.addresses.iter().find(|address| address.is_ipv4() == ipv4)
        });
        address.map(|address| address.ip())
    }
}

/// The address of a node that routes to its pods can go by. An IPv4 route can have an IPv6 router, and
/// not the other way round.
fn direct_address(node: &Node, ipv4: bool) -> Option<IpAddr> {
    let of_family = |ipv4| node.addresses.iter().find(move |address| address.is_ipv4() == ipv4);
    let address = of_family(ipv4).or_else(|| of_family(false).filter(|_| ipv4));
    address.map(|address| address.ip())
}

/// The link-local address that a MAC address gives (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests;
