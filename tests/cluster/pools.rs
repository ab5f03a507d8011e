//! Pools that come, are disabled, and change their mode.

use std::net::IpAddr;

use margay::netlink::RemoteHop;
use margay_tests::cluster::{Cluster, Layout, Member, MemberPod, UPLINK, wait_until};
use margay_tests::traffic::Place;
use serde_json::{Value, json};

#[test]
fn a_pool_that_is_added_is_reached_and_one_that_is_disabled_keeps_its_pods() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    // Pools of different modes: what comes directly may be answered by VXLAN.
    for node in cluster.nodes() {
        let loose = format!("/proc/sys/net/ipv4/conf/{UPLINK}/rp_filter");
        node.enter(|| std::fs::write(loose, "2")).unwrap();
    }
    cluster.start_agents();
    let mut pods = add_each(&cluster, "early", |node| node.network("Always"));

    pods.extend(add_each(&cluster, "late", |node| {
        let mut network = node.network("Always");
        let pools = network["ipam"]["pools"].as_array_mut().unwrap();
        pools.iter_mut().for_each(|pool| pool["disabled"] = json!(true));
        pools.push(json!({"cidr": "10.245.0.0/24", "vxlan_mode": "Never"}));
        pools.push(json!({"cidr": "fd00:10:245::/112", "vxlan_mode": "Always"}));
        network
    }));

    for pod in &pods[2..] {
        let added: ipnetwork::IpNetwork = "10.245.0.0/24".parse().unwrap();
        assert!(added.contains(pod.address(true)), "{}", pod.address(true));
    }
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn a_mode_that_changes_counts_from_the_next_add_on_for_all_pods() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let mut pods = add_each(&cluster, "one", |node| node.network("Never"));
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let node = &cluster.nodes()[0];
    assert!(!has_overlay_way(node, pods[1].address(true)));

    pods.extend(add_each(&cluster, "two", |node| node.network("Always")));
    wait_until("the way is through VXLAN", || has_overlay_way(node, pods[1].address(true)));
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());

    let direct = node.add("three", &node.network("Never"));
    wait_until("the way is direct again", || !has_overlay_way(node, pods[1].address(true)));
    pods.push(direct);
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

fn has_overlay_way(node: &Member, address: IpAddr) -> bool {
    let routes = node.remote_routes().into_iter();
    let mut routes = routes.filter(|route| route.destination.contains(address));
    routes.any(|route| matches!(route.hop, RemoteHop::Overlay { .. }))
}

fn add_each(cluster: &Cluster, name: &str, network: impl Fn(&Member) -> Value) -> Vec<MemberPod> {
    cluster.nodes().iter().map(|node| node.add(name, &network(node))).collect()
}
