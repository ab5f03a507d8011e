//! Blocks and addresses among nodes that allocate at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use margay::netlink::RemoteHop;
use margay_datastore::{Fact, Topic};
use margay_tests::cluster::{Cluster, Layout, Member, MemberPod, wait_until};
use serde_json::{Value, json};

#[test]
fn a_borrowed_address_is_reached_from_everywhere() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 3) else { return };
    let pods: Vec<MemberPod> =
        cluster.nodes().iter().map(|node| node.add("one", &one_block(node, false))).collect();

    // Not before: upkeep may give up a block that an ADD has claimed and holds nothing in yet.
    cluster.start_agents();

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let owners: BTreeSet<String> = blocks(&cluster).into_iter().map(|(_, node)| node).collect();
    assert_eq!(owners.len(), 1, "one node has all there is, and the others borrow");
}

#[test]
fn with_strict_affinity_nothing_is_borrowed() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let [one, other] = cluster.nodes() else { panic!("two nodes") };
    let _pod = one.add("one", &one_block(one, true));

    let (code, message) = other.add_fails("one", &one_block(other, true));

    assert_eq!(code, 101, "{message}");
}

#[test]
fn an_address_that_comes_home_is_reached_at_once() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let [one, other] = cluster.nodes() else { panic!("two nodes") };
    let home = one.add("home", &one_block(one, false));
    let away = other.add("away", &one_block(other, false));
    let address = away.address(true);
    wait_until("the address is known to be away", || routes_to(one, address) == 1);

    one.kill_agent();
    other.del(&away, &one_block(other, false));
    let mut asking = one_block(one, false);
    asking["args"] = json!({"cni": {"ips": [address, away.address(false)]}});
    let back = one.add("back", &asking);
    assert_eq!((back.address(true), routes_to(one, address)), (address, 1), "nobody told it yet");
    cluster.wait_until_all_reach_each_other(&[&home, &back]);

    one.start_agent();
    wait_until("the address is known to be here", || routes_to(one, address) == 0);
    cluster.wait_until_all_reach_each_other(&[&home, &back]);
}

#[test]
fn nodes_that_claim_at_once_get_blocks_and_addresses_of_their_own() {
    const PODS: usize = 4;
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };

    let pods: Vec<MemberPod> = thread::scope(|scope| {
        let adds: Vec<_> = cluster
            .nodes()
            .iter()
            .flat_map(|node| (0..PODS).map(move |index| (node, index)))
            .map(|(node, index)| {
                scope.spawn(move || node.add(&format!("pod{index}"), &node.network("Never")))
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });

    let addresses: BTreeSet<IpAddr> =
        pods.iter().flat_map(|pod| [true, false].map(|ipv4| pod.address(ipv4))).collect();
    assert_eq!(addresses.len(), 2 * PODS * cluster.nodes().len());
    let owners: BTreeSet<String> = blocks(&cluster).into_iter().map(|(_, node)| node).collect();
    assert_eq!(owners.len(), cluster.nodes().len(), "each node has its own");
}

/// A network whose pools are one block each.
fn one_block(node: &Member, strict_affinity: bool) -> Value {
    let mut network = node.network("CrossSubnet");
    let pool = |cidr: &str| json!({"cidr": cidr, "vxlan_mode": "CrossSubnet"});
    network["ipam"]["pools"] = json!([pool("10.244.0.0/27"), pool("fd00:10:244::/123")]);
    network["ipam"]["strict_affinity"] = json!(strict_affinity);
    network
}

fn blocks(cluster: &Cluster) -> Vec<(ipnetwork::IpNetwork, String)> {
    let (_, changes) = cluster.store().survey(Topic::Blocks).unwrap();
    let facts = changes.into_iter().map(|change| change.fact.unwrap().unwrap());
    facts
        .map(|fact| match fact {
            Fact::Block(block) => (block.cidr, block.node),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// How many of the agent's routes lead to another node for this address alone.
fn routes_to(node: &Member, address: IpAddr) -> usize {
    let routes = node.remote_routes().into_iter();
    routes
        .filter(|route| route.destination == address.into() && route.hop != RemoteHop::Unreachable)
        .count()
}
