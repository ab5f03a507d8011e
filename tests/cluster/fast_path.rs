//! The programs that carry packets between nodes past the stacks: the agents tell them the ways.

use std::fs;

use margay::lock::Lock;
use margay::naming::{OVERLAY_DEVICE, OVERLAY_DEVICE_V6};
use margay::netlink::RemoteHop;
use margay_abi::{ABI_VERSION, Counter, Remote, remote_mode};
use margay_datapath::{AttachMode, Datapath, NodeDatapath, NodeInterface};
use margay_tests::cluster::{Cluster, Families, Layout, Member, MemberPod, pairs, wait_until};
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
        link.is_some_and(|link| datapath(node).unwrap().overlay().unwrap().ifindex_v4 == link.index)
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
        assert_ne!(overlay.ifindex_v4, 0, "its port is guarded all the same");
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

#[test]
fn a_node_with_ipv6_alone_is_reached_by_a_device_of_its_own_kind() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };
    let [both, other, alone] = cluster.nodes() else { unreachable!("three nodes") };
    both.start_agent();
    other.start_agent();
    let addresses = [format!("{}/64", alone.address(false))];
    alone.start_agent_with(&json!({"node_addresses": addresses}));
    let pods = pods_that_know_the_way(&cluster, "Always", remote_mode::VXLAN);

    assert_fast(&cluster, &pods);
    assert_eq!(both.link(OVERLAY_DEVICE).unwrap().mtu, 1450);
    assert_eq!(both.link(OVERLAY_DEVICE_V6).unwrap().mtu, 1430);
    assert!(alone.link(OVERLAY_DEVICE).is_none(), "of use to nobody");

    // With IPv4 as well, it is as all others are.
    alone.kill_agent();
    alone.start_agent();
    wait_until("no way by the second device", || ways_by(both, OVERLAY_DEVICE_V6) == 0);
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    assert_fast(&cluster, &pods);
    assert!(both.link(OVERLAY_DEVICE_V6).is_some(), "for what others may still send");
}

/// Its pods of both families are reached plainly, by its IPv6 address; to IPv4 pods of others there is only VXLAN.
#[test]
fn vxlan_of_a_node_with_ipv6_alone_is_received_where_none_goes_back() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let [both, alone] = cluster.nodes() else { unreachable!("two nodes") };
    both.start_agent();
    let addresses = [format!("{}/64", alone.address(false))];
    alone.start_agent_with(&json!({"node_addresses": addresses}));
    let add = |node: &Member| node.add("one", &node.network("CrossSubnet"));
    let pods: Vec<MemberPod> = cluster.nodes().iter().map(add).collect();

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());

    assert_eq!(ways_by(alone, OVERLAY_DEVICE_V6), 1);
    assert_eq!(ways_by(both, OVERLAY_DEVICE_V6), 0);
}

/// Routes that lead over an overlay device.
fn ways_by(node: &Member, device: &str) -> usize {
    let device = node.link(device).expect("a device").index;
    let routes = node.remote_routes().into_iter();
    let hops = routes.filter(|route| match route.hop {
        RemoteHop::Overlay { ifindex, .. } => ifindex == device,
        _ => false,
    });
    hops.count()
}

/// As margay made it before it had a table: it takes the port of both families.
#[test]
fn a_device_without_a_table_is_replaced() {
    for (families, name) in [(Families::Both, OVERLAY_DEVICE), (Families::Ipv6, OVERLAY_DEVICE_V6)]
    {
        let Some(cluster) = Cluster::with(Layout::OneSubnet, families, 2, 1) else { return };
        for node in cluster.nodes() {
            let device = "ip link add mgyvxlan up type vxlan external dstport 4789";
            let words: Vec<&str> = device.split(' ').collect();
            node.enter(|| margay_tests::node::run(&words));
        }
        let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);

        assert_fast(&cluster, &pods);
        let node = &cluster.nodes()[0];
        assert!(node.link(name).is_some());
    }
}

#[test]
fn what_an_overlay_device_is_told_besides_is_taken_back() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    let node = &cluster.nodes()[0];
    let ifindex = node.link(OVERLAY_DEVICE).unwrap().index;
    let entries = || {
        node.netlink(async |netlink| netlink.forwarding_entries(ifindex).await.expect("entries"))
    };
    let before = entries();
    assert_eq!(before.values().collect::<Vec<_>>(), [&Some(cluster.nodes()[1].address(true))]);
    let (&known, _) = before.first_key_value().expect("an entry");

    node.netlink(async |netlink| {
        let nobody = "192.0.2.1".parse().unwrap();
        for mac in [known, [2, 0, 0, 0, 0, 0x77]] {
            netlink.set_forwarding_entry(ifindex, mac, nobody).await.expect("set");
        }
    });
    touch_a_link(node);

    wait_until("what the agent knows, and no more", || entries() == before);
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn a_pod_that_stays_with_an_earlier_version_reaches_what_has_moved_since() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = pods_with_a_fast_path(&cluster, "Always", remote_mode::VXLAN);
    let (node, stays, far) = (&cluster.nodes()[0], &pods[0], &pods[1]);
    node.kill_agent();
    // The other pod's block was a third node's, as far as the earlier version knows.
    let earlier = datapath(node).unwrap();
    for (prefix, remote) in earlier.remotes().entries().unwrap() {
        let mut third = remote.node;
        third[15] ^= 0x40;
        earlier.remotes().set(prefix, &Remote { node: third, ..remote }).unwrap();
    }
    let root = node.bpffs_root();
    fs::rename(root.join(ABI_VERSION.to_string()), root.join("0")).unwrap();
    assert!(!answers_ping(stays, far.address(true)), "its packets go to the third node");

    let lock = Lock::take(&node.path("run"), host_veth(stays)).unwrap();
    node.start_agent_with(&json!({"upkeep_interval_seconds": 1}));

    cluster.wait_until_all_reach_each_other(&[stays, far]);
    for ipv4 in [true, false] {
        let of_earlier = Datapath::earlier_entries(&root, stays.address(ipv4)).unwrap();
        assert_eq!(of_earlier.len(), 1, "it has its earlier programs");
        assert_tcp(stays, far, far.address(ipv4));
    }
    drop(lock);
    wait_until("the pod is taken over", || {
        Datapath::earlier_entries(&root, stays.address(false)).unwrap().is_empty()
    });
    cluster.wait_until_all_reach_each_other(&[stays, far]);
    assert_fast(&cluster, &pods);
}

fn host_veth(pod: &MemberPod) -> &str {
    pod.result()["interfaces"][0]["name"].as_str().unwrap()
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
    pods_that_know_the_way(cluster, vxlan_mode, mode)
}

/// The same where the agents run.
fn pods_that_know_the_way(cluster: &Cluster, vxlan_mode: &str, mode: u8) -> Vec<MemberPod> {
    let add = |node: &Member| node.add("one", &node.network(vxlan_mode));
    let pods: Vec<MemberPod> = cluster.nodes().iter().map(add).collect();
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    for (near, node) in cluster.nodes().iter().enumerate() {
        for (_, far) in pods.iter().enumerate().filter(|(number, _)| *number != near) {
            wait_until("programs that know the way", || {
                let remotes = datapath(node);
                let mode_of = |ipv4| {
                    let remote = remotes.as_ref()?.remotes().get(far.address(ipv4)).unwrap();
                    remote.map(|remote| remote.mode)
                };
                [true, false].into_iter().all(|ipv4| mode_of(ipv4) == Some(mode))
            });
        }
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
