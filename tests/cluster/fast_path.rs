//! The programs that carry packets between nodes past the stacks: the agents tell them the ways.

use margay::naming::OVERLAY_DEVICE;
use margay_abi::{Counter, remote_mode};
use margay_datapath::{AttachMode, NodeDatapath, NodeInterface};
use margay_tests::cluster::{Cluster, Layout, Member, MemberPod, pairs, wait_until};
use margay_tests::traffic::{Place, answers_ping, assert_tcp};
use serde_json::json;

#[test]
fn connections_between_nodes_take_the_fast_path_through_vxlan() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);

    assert_fast(&cluster, &pods);
}

#[test]
fn connections_between_nodes_take_the_fast_path_by_plain_routes() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Never", remote_mode::PLAIN);

    assert_fast(&cluster, &pods);
}

#[test]
fn an_overlay_device_that_is_made_anew_gets_its_programs() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    let node = &cluster.nodes()[0];
    let before = node.link(OVERLAY_DEVICE).unwrap().index;

    node.netlink(async |netlink| netlink.delete_link(before).await.unwrap());

    wait_until("a new device that the programs know", || {
        let link = node.link(OVERLAY_DEVICE).filter(|link| link.index != before);
        link.is_some_and(|link| datapath(node).unwrap().overlay().unwrap().ifindex == link.index)
    });
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    assert_fast(&cluster, &pods);
}

#[test]
fn agents_may_come_and_go_while_the_fast_path_stays() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    for node in cluster.nodes() {
        node.kill_agent();
    }

    assert_fast(&cluster, &pods);
}

#[test]
fn where_the_fast_path_is_switched_off_the_routes_carry_what_it_did() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    let everyone: Vec<&MemberPod> = pods.iter().collect();
    assert_fast(&cluster, &pods);

    for node in cluster.nodes() {
        node.kill_agent();
        node.start_agent_with(&json!({"fast_path": false}));
    }

    for node in cluster.nodes() {
        wait_until("nothing of it", || {
            let datapath = datapath(node).unwrap();
            datapath.remotes().entries().unwrap().is_empty() && !is_attached(node, &datapath)
        });
    }
    let counted = || cluster.nodes().iter().map(|node| packets(node, Counter::ToNodeV4)).sum();
    let before: u64 = counted();
    cluster.wait_until_all_reach_each_other(&everyone);
    for (client, server) in pairs(&everyone) {
        assert_tcp(*client, *server, server.address(true));
    }
    assert_eq!(counted(), before);
    for node in cluster.nodes() {
        let overlay = datapath(node).unwrap().overlay().unwrap();
        assert_ne!(overlay.ifindex, 0, "its port is guarded all the same");
    }
}

#[test]
fn ipsec_policies_see_all_that_goes_between_nodes() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    assert_fast(&cluster, &pods);
    let [node, _] = cluster.nodes() else { unreachable!("two nodes") };
    let policy = ["dst", "0.0.0.0/0", "proto", "udp", "dport", "4789", "dir", "out"];
    let change = |verb: &str, action: &[&str]| {
        let change = [&["ip", "xfrm", "policy", verb][..], &policy, action].concat();
        node.enter(|| margay_tests::node::run(&change));
    };

    change("add", &["action", "block"]);
    touch_a_link(node);

    wait_until("nothing that the policy does not see", || {
        let datapath = datapath(node).unwrap();
        datapath.remotes().entries().unwrap().is_empty() && !is_attached(node, &datapath)
    });
    assert!(!answers_ping(&pods[0], pods[1].address(true)), "the policy lets nothing through");

    change("delete", &[]);
    touch_a_link(node);
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    wait_until("the fast path again", || {
        let datapath = datapath(node).unwrap();
        !datapath.remotes().entries().unwrap().is_empty() && is_attached(node, &datapath)
    });
    assert_fast(&cluster, &pods);
}

/// Has the agent look again at once.
fn touch_a_link(node: &Member) {
    node.enter(|| margay_tests::node::run(&["ip", "link", "add", "touched", "type", "veth"]));
    node.enter(|| margay_tests::node::run(&["ip", "link", "delete", "touched"]));
}

fn is_attached(node: &Member, datapath: &NodeDatapath) -> bool {
    let ifindex = node.link(OVERLAY_DEVICE).expect("overlay").index;
    let overlay = NodeInterface::Overlay;
    node.netlink(async |netlink| {
        let netlink = netlink.handle();
        datapath.is_attached(netlink, ifindex, overlay, AttachMode::Clsact).await.unwrap()
    })
}

/// A pod on each node, whose programs know the way to the other.
fn pods_with_a_fast_path(cluster: &Cluster, vxlan_mode: &str, mode: u8) -> Vec<MemberPod> {
    cluster.start_agents();
    let add = |node: &Member| node.add("one", &node.network(vxlan_mode));
    let pods: Vec<MemberPod> = cluster.nodes().iter().map(add).collect();
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    for (node, far) in cluster.nodes().iter().zip(pods.iter().rev()) {
        wait_until("programs that know the way", || {
            let remotes = datapath(node);
            let mode_of = |ipv4| {
                let remote = remotes.as_ref()?.remotes().get(far.address(ipv4)).unwrap();
                remote.map(|remote| remote.mode)
            };
            [true, false].into_iter().all(|ipv4| mode_of(ipv4) == Some(mode))
        });
    }
    pods
}

fn assert_fast(cluster: &Cluster, pods: &[MemberPod]) {
    let everyone: Vec<&MemberPod> = pods.iter().collect();
    for (ipv4, to, from) in [
        (true, Counter::ToNodeV4, Counter::FromNodeV4),
        (false, Counter::ToNodeV6, Counter::FromNodeV6),
    ] {
        let counted =
            || cluster.nodes().iter().map(|node| [to, from].map(|row| packets(node, row)));
        let before: Vec<[u64; 2]> = counted().collect();
        for (client, server) in pairs(&everyone) {
            for _ in 0..3 {
                assert_tcp(*client, *server, server.address(ipv4));
            }
        }
        for ([sent, delivered], [sent_before, delivered_before]) in counted().zip(before) {
            assert!(sent > sent_before + 15, "{sent_before} to {sent} sent");
            assert!(
                delivered > delivered_before + 15,
                "{delivered_before} to {delivered} delivered"
            );
        }
    }
}

fn packets(node: &Member, counter: Counter) -> u64 {
    datapath(node).unwrap().stats().unwrap()[counter as usize].1.packets
}

fn datapath(node: &Member) -> Option<NodeDatapath> {
    NodeDatapath::open(&node.bpffs_root()).unwrap()
}
