//! Who reaches whom, whatever the network between the nodes and the mode of the pools.

use std::net::IpAddr;

use margay::naming::{OVERLAY_DEVICE, OVERLAY_DEVICE_V6};
use margay::netlink::RemoteHop;
use margay_tests::cluster::{
    Cluster, Families, Layout, Member, MemberPod, pairs, wait_until_reached,
};
use margay_tests::traffic::{assert_ping, assert_tcp, source_seen};

#[test]
fn pods_of_all_nodes_reach_each_other_by_plain_routes() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };
    let pods = pods_that_reach_each_other(&cluster, "Never");

    for pod in &pods {
        assert_eq!(pod.mtu(), 1500);
    }
    for node in cluster.nodes() {
        assert!(node.link(OVERLAY_DEVICE).is_none(), "nothing takes VXLAN");
    }
}

#[test]
fn pods_of_all_nodes_reach_each_other_through_vxlan() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };
    let pods = pods_that_reach_each_other(&cluster, "Always");

    for pod in &pods {
        assert_eq!(pod.mtu(), 1450);
    }
    for node in cluster.nodes() {
        assert_eq!((overlay_routes(node), direct_routes(node)), (4, 0));
        assert_eq!(node.link(OVERLAY_DEVICE).unwrap().mtu, 1450);
    }
}

#[test]
fn pods_behind_a_router_are_reached_through_vxlan() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 3) else { return };
    pods_that_reach_each_other(&cluster, "Always");
}

#[test]
fn only_what_is_on_another_subnet_takes_vxlan_across_subnets() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 3) else { return };
    pods_that_reach_each_other(&cluster, "CrossSubnet");

    let [near, neighbour, apart] = cluster.nodes() else { panic!("three nodes") };
    for node in [near, neighbour] {
        assert_eq!((overlay_routes(node), direct_routes(node)), (2, 2));
    }
    assert_eq!((overlay_routes(apart), direct_routes(apart)), (4, 0));
}

#[test]
fn vxlan_carries_both_families_over_ipv4_alone() {
    let Some(cluster) = Cluster::with(Layout::TwoSubnets, Families::Ipv4, 3, 1) else { return };
    let pods = pods_that_reach_each_other(&cluster, "CrossSubnet");

    assert_eq!(pods[0].mtu(), 1450);
}

#[test]
fn vxlan_carries_both_families_over_ipv6_alone() {
    let Some(cluster) = Cluster::with(Layout::TwoSubnets, Families::Ipv6, 3, 1) else { return };
    let pods = pods_that_reach_each_other(&cluster, "Always");

    assert_eq!(pods[0].mtu(), 1430);
    let node = &cluster.nodes()[0];
    assert_eq!(node.link(OVERLAY_DEVICE_V6).unwrap().mtu, 1430);
    assert!(node.link(OVERLAY_DEVICE).is_none(), "of use to nobody");
}

/// A pod on each node, and one more on the first; all that can reach each other has been seen to.
fn pods_that_reach_each_other(cluster: &Cluster, vxlan_mode: &str) -> Vec<MemberPod> {
    cluster.start_agents();
    let add = |node: &Member, name| node.add(name, &node.network(vxlan_mode));
    let mut pods: Vec<MemberPod> = cluster.nodes().iter().map(|node| add(node, "one")).collect();
    pods.push(add(&cluster.nodes()[0], "two"));
    let everyone: Vec<&MemberPod> = pods.iter().collect();
    cluster.wait_until_all_reach_each_other(&everyone);
    for (from, to) in pairs(&everyone) {
        for ipv4 in [true, false] {
            let target = to.address(ipv4);
            assert_ping(*from, target);
            assert_tcp(*from, *to, target);
            assert_eq!(source_seen(*from, *to, target), from.address(ipv4), "as it was sent");
        }
    }
    assert_nodes_reach_pods(cluster, &pods);
    pods
}

/// A node reaches every pod and is reached by every pod of its own.
fn assert_nodes_reach_pods(cluster: &Cluster, pods: &[MemberPod]) {
    for node in cluster.nodes() {
        for pod in pods {
            for ipv4 in [true, false] {
                wait_until_reached(node, pod.address(ipv4));
                let seen = source_seen(node, pod, pod.address(ipv4));
                assert!(is_of_node(node, seen, ipv4), "{seen} is not of {}", node.name());
            }
        }
    }
}

/// Its own address, or the one that it has on the overlay.
fn is_of_node(node: &Member, address: IpAddr, ipv4: bool) -> bool {
    let infos = node.netlink(async |netlink| netlink.all_addresses().await.unwrap());
    let has = infos.iter().any(|info| info.address == address);
    has && address.is_ipv4() == ipv4
}

fn overlay_routes(node: &Member) -> usize {
    let routes = node.remote_routes().into_iter();
    routes.filter(|route| matches!(route.hop, RemoteHop::Overlay { .. })).count()
}

fn direct_routes(node: &Member) -> usize {
    let routes = node.remote_routes().into_iter();
    routes.filter(|route| matches!(route.hop, RemoteHop::Via { .. })).count()
}
