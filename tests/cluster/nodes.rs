//! Nodes that leave, and many of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use margay::netlink::RemoteHop;
use margay_agent::node::Registrar;
use margay_agent::underlay::Underlay;
use margay_datapath::NodeDatapath;
use margay_datastore::{
    AssignRequest, Attachment, Caution, Ipam, RemoveNodeError, Store, Topic, remove_node,
};
use margay_tests::cluster::{Cluster, Layout, Member, MemberPod, wait_until};
use serde_json::json;

#[test]
fn a_node_that_leaves_is_forgotten_by_all_and_can_join_again() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };
    cluster.start_agents();
    let add = |node: &Member| node.add("one", &node.network("Always"));
    let mut pods: Vec<MemberPod> = cluster.nodes().iter().map(add).collect();
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let [one, other, leaver] = cluster.nodes() else { panic!("three nodes") };
    let gone = pods.pop().unwrap();
    let had = [true, false].map(|ipv4| gone.address(ipv4));
    for node in [one, other] {
        wait_until("programs that know the way", || had.iter().all(|ip| knows(node, *ip)));
    }

    let refused = remove_node(&cluster.store(), leaver.name(), Caution::default());
    assert!(matches!(refused, Err(RemoveNodeError::Alive { .. })), "{refused:?}");
    leaver.kill_agent();
    let removed = remove_node(&cluster.store(), leaver.name(), Caution::Forced).unwrap();

    assert_eq!(removed.endpoints.len(), 1, "{removed:?}");
    // Agent and plugin, who began at once, may each have claimed a block of a family.
    assert!((2..=4).contains(&removed.blocks.len()), "{removed:?}");
    assert_eq!(removed.released.len(), 3, "a pod, and the overlay in two families: {removed:?}");
    for node in [one, other] {
        wait_until("nothing leads to the node", || {
            had.iter().all(|ip| !leads_elsewhere(node, *ip) && !knows(node, *ip))
        });
    }

    // What it had is another's, at once, and stays so whatever the node does when it is back.
    let mut asking = one.network("Always");
    asking["args"] = json!({"cni": {"ips": had}});
    pods.push(one.add("heir", &asking));
    leaver.del(&gone, &leaver.network("Always"));
    leaver.start_agent();
    pods.push(leaver.add("back", &leaver.network("Always")));
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let addresses: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.address(true)).collect();
    assert_eq!(addresses.len(), pods.len());
}

#[test]
fn the_blocks_of_twenty_nodes_come_and_go() {
    const NODES: u8 = 20;
    const PODS: usize = 5;
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 1) else { return };
    let node = &cluster.nodes()[0];
    node.start_agent();
    let _pod = node.add("one", &node.network("CrossSubnet"));
    let store = cluster.store();

    let mut addresses: Vec<Vec<IpAddr>> = Vec::new();
    for number in 0..NODES {
        let name = recorded(number);
        // Half of them behind a router, where this node sends VXLAN to.
        let subnet = 1 + number % 2;
        let addresses_of_node = vec![
            format!("192.168.{subnet}.{}/24", 100 + number).parse().unwrap(),
            format!("fd99:{subnet}::{}/64", 100 + number).parse().unwrap(),
        ];
        let underlay = Underlay { addresses: addresses_of_node, mtu: 1500 };
        Registrar::new(store.clone(), &name).register(&underlay, &store.pools().unwrap()).unwrap();
        let pods = (0..PODS).flat_map(|pod| assign(&store, &name, pod));
        addresses.push(pods.collect());
    }

    wait_until("a route and an entry for each address of each node", || {
        addresses.iter().flatten().all(|ip| leads_elsewhere(node, *ip) && knows(node, *ip))
    });
    let blocks = store.survey(Topic::Blocks).unwrap().1.len();
    assert!(blocks >= 2 * usize::from(NODES), "{blocks}");
    wait_until("no other route", || node.remote_routes().len() == blocks);

    for (number, gone) in (0..NODES).zip(&addresses) {
        assert!(!remove_node(&store, &recorded(number), Caution::Forced).unwrap().is_empty());
        if number == NODES / 2 {
            wait_until("nothing leads to the node", || {
                gone.iter().all(|ip| !leads_elsewhere(node, *ip) && !knows(node, *ip))
            });
            let stays = &addresses[usize::from(NODES) - 1];
            assert!(stays.iter().all(|ip| leads_elsewhere(node, *ip) && knows(node, *ip)));
        }
    }
    wait_until("only this node's own blocks are left", || {
        let routes = node.remote_routes();
        routes.len() == 2 && routes.iter().all(|route| route.hop == RemoteHop::Unreachable)
    });
    assert!(addresses.iter().flatten().all(|ip| !knows(node, *ip)));
}

fn recorded(number: u8) -> String {
    format!("recorded-{number}")
}

fn assign(store: &Store, node: &str, pod: usize) -> Vec<IpAddr> {
    let request = AssignRequest {
        attachment: Attachment::new("podnet", format!("{node}-{pod}"), "eth0").unwrap(),
        pod: None,
        netns: None,
        pools: store.pools().unwrap(),
        ipv4: true,
        ipv6: true,
        requested: Vec::new(),
        strict_affinity: false,
    };
    Ipam::new(store, node, "boot").assign(&request).unwrap()
}

/// Whether a route of the node's agent leads to the address on another node.
fn leads_elsewhere(node: &Member, address: IpAddr) -> bool {
    let routes = node.remote_routes().into_iter();
    let mut elsewhere = routes.filter(|route| route.hop != RemoteHop::Unreachable);
    elsewhere.any(|route| route.destination.contains(address))
}

/// Whether the programs of the node know a way to the address.
fn knows(node: &Member, address: IpAddr) -> bool {
    let datapath = NodeDatapath::open(&node.bpffs_root()).unwrap();
    datapath.is_some_and(|datapath| datapath.remotes().get(address).unwrap().is_some())
}
