use std::net::IpAddr;

use margay_datastore::OverlayEnd;

use super::*;

const ADDRESSES: [&str; 2] = ["192.168.1.1/24", "fd99:1::1/64"];

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn node(name: &str, addresses: &[&str], mac: u8) -> Node {
    Node {
        name: name.into(),
        boot_id: "1".into(),
        addresses: networks(addresses),
        overlay: Some(OverlayEnd { mac: [2, 0, 0, 0, 0, mac], addresses: vec![] }),
    }
}

fn pool(cidr: &str, encapsulation: Encapsulation) -> Pool {
    Pool { encapsulation, ..Pool::new(cidr.parse().unwrap()) }
}

fn block(cidr: &str, node: &str) -> Placement {
    Placement { cidr: cidr.parse().unwrap(), node: node.into(), borrowed: BTreeMap::new() }
}

fn topology(nodes: Vec<Node>, pools: Vec<Pool>, blocks: Vec<Placement>) -> Topology {
    Topology {
        nodes: nodes.into_iter().map(|node| (node.name.clone(), node)).collect(),
        pools: pools.into_iter().map(|pool| (pool.cidr.to_string(), pool)).collect(),
        blocks: blocks.into_iter().map(|block| (block.cidr.to_string(), block)).collect(),
        ..Topology::default()
    }
}

/// Seen from node `a`, whose neighbour `near` shares its subnet, and `far` does not.
fn seen(encapsulation: Encapsulation) -> RemoteTable {
    let nodes = vec![
        node("near", &["192.168.1.2/24", "fd99:1::2/64"], 2),
        node("far", &["192.168.2.3/24", "fd99:2::3/64"], 3),
    ];
    let pools = vec![pool("10.1.0.0/16", encapsulation), pool("fd00::/64", encapsulation)];
    let blocks = vec![
        block("10.1.0.0/26", "a"),
        block("10.1.0.64/26", "near"),
        block("10.1.0.128/26", "far"),
        block("fd00::40/122", "near"),
        block("fd00::80/122", "far"),
    ];
    RemoteTable::of(&topology(nodes, pools, blocks), "a", &networks(&ADDRESSES))
}

fn way(table: &RemoteTable, destination: &str) -> Way {
    table.ways[&destination.parse().unwrap()]
}

fn direct(node: &str) -> Way {
    Way::Direct { node: node.parse().unwrap() }
}

fn overlay(node: &str, mac: u8) -> Way {
    Way::Overlay(Peer { node: node.parse().unwrap(), mac: [2, 0, 0, 0, 0, mac] })
}

#[test]
fn never_is_by_the_nodes_own_addresses() {
    let table = seen(Encapsulation::None);

    assert_eq!(way(&table, "10.1.0.64/26"), direct("192.168.1.2"));
    assert_eq!(way(&table, "10.1.0.128/26"), direct("192.168.2.3"));
    assert_eq!(way(&table, "fd00::80/122"), direct("fd99:2::3"));
    assert_eq!(table.peers(true).chain(table.peers(false)).count(), 0);
}

#[test]
fn always_is_by_the_overlay_and_that_by_ipv4() {
    let table = seen(Encapsulation::Vxlan);

    assert_eq!(way(&table, "10.1.0.64/26"), overlay("192.168.1.2", 2));
    assert_eq!(way(&table, "fd00::80/122"), overlay("192.168.2.3", 3));
    assert_eq!(way(&table, "10.1.0.0/26"), Way::Own);
}

#[test]
fn cross_subnet_is_by_the_overlay_where_the_subnet_is_another() {
    let table = seen(Encapsulation::VxlanCrossSubnet);

    assert_eq!(way(&table, "10.1.0.64/26"), direct("192.168.1.2"));
    assert_eq!(way(&table, "fd00::40/122"), direct("fd99:1::2"));
    assert_eq!(way(&table, "10.1.0.128/26"), overlay("192.168.2.3", 3));
    assert_eq!(way(&table, "fd00::80/122"), overlay("192.168.2.3", 3));
}

#[test]
fn a_borrowed_address_is_where_its_pod_is() {
    let nodes = vec![node("b", &["192.168.1.2/24"], 2), node("c", &["192.168.1.3/24"], 3)];
    let mut own = block("10.1.0.0/26", "a");
    own.borrowed.insert("10.1.0.5".parse().unwrap(), "b".into());
    let mut of_b = block("10.1.0.64/26", "b");
    of_b.borrowed.insert("10.1.0.70".parse().unwrap(), "c".into());
    of_b.borrowed.insert("10.1.0.71".parse().unwrap(), "a".into());
    let pools = vec![pool("10.1.0.0/16", Encapsulation::None)];
    let topology = topology(nodes, pools, vec![own, of_b]);

    let table = RemoteTable::of(&topology, "a", &networks(&ADDRESSES));

    assert_eq!(way(&table, "10.1.0.5/32"), direct("192.168.1.2"));
    assert_eq!(way(&table, "10.1.0.70/32"), direct("192.168.1.3"));
    assert_eq!(table.ways.len(), 4, "what a pod of this node borrows is left to its ADD");
}

#[test]
fn ipv6_pods_behind_nodes_of_ipv4_alone_take_an_overlay() {
    let nodes = || vec![node("b", &["192.168.1.2/24"], 2)];
    let of = |encapsulation| {
        let pools = vec![pool("fd00::/64", encapsulation)];
        let topology = topology(nodes(), pools, vec![block("fd00::40/122", "b")]);
        RemoteTable::of(&topology, "a", &networks(&ADDRESSES[..1]))
    };

    let table = of(Encapsulation::VxlanCrossSubnet);
    assert_eq!(way(&table, "fd00::40/122"), overlay("192.168.1.2", 2));
    let (destination, peer) = table.peers(true).next().unwrap();
    assert_eq!(peer.gateway(destination), "fe80::ff:fe00:2".parse::<IpAddr>().unwrap());
    let table = of(Encapsulation::None);
    assert!(table.ways.is_empty() && table.problems.len() == 1, "{table:?}");
}

#[test]
fn ipv4_pods_are_reached_by_nodes_of_ipv6_alone() {
    let nodes = || vec![node("b", &["fd99:1::2/64"], 2)];
    let of = |encapsulation| {
        let pools = vec![pool("10.1.0.0/16", encapsulation)];
        let topology = topology(nodes(), pools, vec![block("10.1.0.64/26", "b")]);
        RemoteTable::of(&topology, "a", &networks(&ADDRESSES[1..]))
    };

    assert_eq!(way(&of(Encapsulation::None), "10.1.0.64/26"), direct("fd99:1::2"));
    assert_eq!(way(&of(Encapsulation::Vxlan), "10.1.0.64/26"), overlay("fd99:1::2", 2));
}

#[test]
fn vxlan_comes_by_ipv6_from_nodes_that_have_nothing_else() {
    let comes = |addresses: &[&str]| {
        let nodes = vec![node("a", &ADDRESSES[1..], 1), node("b", addresses, 2)];
        let topology = topology(nodes, vec![], vec![]);
        let table = RemoteTable::of(&topology, "a", &networks(&ADDRESSES));
        table.vxlan_comes_by_ipv6
    };

    assert!(comes(&["fd99:1::2/64"]), "and not of this node's own record");
    assert!(!comes(&["192.168.1.2/24", "fd99:1::2/64"]));
    assert!(!comes(&["192.168.1.2/24"]));
}

#[test]
fn what_cannot_be_reached_is_named() {
    let silent = Node { name: "silent".into(), ..Node::default() };
    let pools =
        vec![pool("10.1.0.0/16", Encapsulation::Vxlan), pool("10.16.0.0/16", Encapsulation::None)];
    let blocks = vec![
        block("10.16.0.0/12", "a"),
        block("10.1.0.64/26", "silent"),
        block("10.1.0.128/26", "unknown"),
        block("10.2.0.0/26", "a"),
    ];

    let table = RemoteTable::of(&topology(vec![silent], pools, blocks), "a", &[]);

    assert!(table.ways.is_empty());
    let problems: Vec<_> = table.problems.iter().map(String::as_str).collect();
    assert_eq!(
        problems,
        [
            "block 10.16.0.0/12 is of no pool",
            "block 10.2.0.0/26 is of no pool",
            "no way to IPv4 pods of node silent: it is not on the overlay yet",
            "no way to IPv4 pods of node unknown: it has no record",
        ]
    );
}
