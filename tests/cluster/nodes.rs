//! Nodes that leave, and many of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use margay::netlink::RemoteHop;
use margay_datapath::NodeDatapath;
use margay_datastore::{Caution, RemoveNodeError, remove_node};
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

    assert_eq!((removed.endpoints.len(), removed.blocks.len()), (1, 2));
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
