//! A host that is in its pods' way, and pools that are.

use std::fs;

use margay_datastore::testing::etcd::EtcdCluster;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::on_etcd;
use rustix::mount::mount_bind;
use serde_json::{Value, json};

use super::agent::configure_agent;
use super::{Diagnosis, node_with_a_pod, set};

#[test]
fn a_host_that_does_not_forward_is_named_and_made_to() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    for family in ["ipv4", "ipv6"] {
        set(&format!("{family}/conf/all/forwarding"), "0");
    }

    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("forwarding-off", "net/ipv4/ip_forward is 0");
    diagnosis.assert_found("forwarding-off", "net/ipv6/conf/all/forwarding is 0");

    let mended = Diagnosis::with(&ctl, &["--fix"]);
    mended.assert_only(&[]);
    assert_eq!(
        mended.done()[..2],
        ["the host forwards IPv4 again", "the host forwards IPv6 again"]
    );
}

#[test]
fn a_family_that_no_pod_has_is_not_made_to_be_forwarded() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["assign_ipv6"] = json!(false);
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    for family in ["ipv4", "ipv6"] {
        set(&format!("{family}/conf/all/forwarding"), "0");
    }
    let diagnosis = Diagnosis::of(&ctl);
    assert_eq!(diagnosis.ids().iter().filter(|id| **id == "forwarding-off").count(), 1);

    let mended = Diagnosis::with(&ctl, &["--fix"]);

    mended.assert_only(&[]);
    assert_eq!(mended.done(), ["the host forwards IPv4 again"]);
    let ipv6 = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
    assert_eq!(ipv6, "0\n");
}

#[test]
fn strict_reverse_path_filters_are_named_where_pools_differ_in_their_ways() {
    let Some(node) = Node::new() else { return };
    let cluster = EtcdCluster::start();
    let network = on_etcd(network_of_two_ways(&node), &cluster);
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    configure_agent(&node, &network, "127.0.0.1:1".parse().unwrap());
    for interface in ["all", "uplink0"] {
        set(&format!("ipv4/conf/{interface}/rp_filter"), "0");
    }
    Diagnosis::of(&ctl).assert_only(&[]);

    set("ipv4/conf/uplink0/rp_filter", "1");
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("rp-filter-strict", "rp_filter of uplink0");
    diagnosis.assert_only(&["rp-filter-strict"]);

    // The greater of the two counts, and the greatest is loose.
    set("ipv4/conf/all/rp_filter", "2");
    Diagnosis::of(&ctl).assert_only(&[]);
}

#[test]
fn strict_reverse_path_filters_are_nobodys_matter_on_a_node_by_itself() {
    let Some(node) = Node::new() else { return };
    let network = network_of_two_ways(&node);
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    configure_agent(&node, &network, "127.0.0.1:1".parse().unwrap());
    set("ipv4/conf/uplink0/rp_filter", "1");

    Diagnosis::of(&ctl).assert_only(&[]);
}

#[test]
fn a_pod_of_the_stacks_own_without_a_default_route_is_named() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["dataplane"] = json!("linux");
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    Diagnosis::of(&ctl).assert_only(&[]);
    node.run(&["ip", "route", "del", "default"]);

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("no-default-route", "a needs one");
    diagnosis.assert_only(&["no-default-route"]);
}

#[test]
fn a_pod_whose_packets_do_not_fit_outside_is_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    node.run(&["ip", "link", "set", "uplink0", "mtu", "1400"]);

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("mtu-too-large", "a has MTU 1500, and outside goes 1400");
    diagnosis.assert_only(&["mtu-too-large"]);
}

#[test]
fn only_pods_of_a_network_that_has_vxlan_leave_room_for_it() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let mut other = node.network();
    other["name"] = json!("encapsulated");
    other["ipam"]["pools"] = json!([{"cidr": "10.250.0.0/24", "vxlan_mode": "Always"}]);
    let pod = node.sandbox("b");
    pod.add(&other);

    // By its pools, and then by its configuration.
    Diagnosis::of(&ctl).assert_only(&[]);
    ctl.install(&other);
    Diagnosis::of(&ctl).assert_only(&[]);

    node.run(&["ip", "link", "set", "uplink0", "mtu", "1480"]);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("mtu-too-large", "a has MTU 1500, and outside goes 1480");
    diagnosis.assert_found("mtu-too-large", "b has MTU 1450, and outside goes 1430");
}

#[test]
fn a_firewall_that_drops_what_pods_forward_is_named_unless_it_accepts_them() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let nft = |rules: &str| drop(node.run(&["nft", rules]));
    let is_named = |chain: &str, pools: &str| {
        let diagnosis = Diagnosis::of(&ctl);
        diagnosis.assert_found("forward-drops", chain);
        diagnosis.assert_found("forward-drops", &format!("none accepts {pools}"));
        diagnosis.assert_only(&["forward-drops"]);
    };

    for iptables in ["iptables", "iptables-legacy"] {
        node.run(&[iptables, "-P", "FORWARD", "DROP"]);
        node.run(&[iptables, "-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT"]);
        let chain = match iptables {
            "iptables" => "chain FORWARD of nftables table ip filter drops",
            _ => "chain FORWARD of iptables-legacy drops",
        };
        is_named(chain, "10.244.0.0/24");
        node.run(&[iptables, "-N", "PODS"]);
        node.run(&[iptables, "-A", "FORWARD", "-m", "comment", "--comment", "x", "-j", "PODS"]);
        node.run(&[iptables, "-A", "PODS", "-s", "10.244.0.0/16", "-j", "ACCEPT"]);
        Diagnosis::of(&ctl).assert_only(&[]);
        node.run(&[iptables, "-F", "PODS"]);
        is_named(chain, "10.244.0.0/24");
        // As doctor says.
        node.run(&[iptables, "-I", "FORWARD", "-i", "mgy+", "-j", "ACCEPT"]);
        Diagnosis::of(&ctl).assert_only(&[]);
        node.run(&[iptables, "-P", "FORWARD", "ACCEPT"]);
    }

    nft(concat!(
        "add table inet host; ",
        "add chain inet host f { type filter hook forward priority 0; policy drop; }; ",
        "add rule inet host f ct state established accept",
    ));
    is_named("chain f of nftables table inet host", "10.244.0.0/24, fd00:10:244::/112");
    nft("add rule inet host f ip saddr 10.244.0.0/24 accept");
    is_named("chain f of nftables table inet host", "fd00:10:244::/112");
    nft("add rule inet host f iifname \"mgy*\" accept");
    Diagnosis::of(&ctl).assert_only(&[]);
    // As firewalld has it: the last rule is the policy.
    nft(
        "flush table inet host; add chain inet host f { type filter hook forward priority 0; policy accept; }; add rule inet host f reject",
    );
    is_named("chain f of nftables table inet host", "10.244.0.0/24, fd00:10:244::/112");
}

#[test]
fn a_table_of_connections_that_is_nearly_full_is_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    for (name, value) in [("count", "95"), ("max", "100")] {
        fs::write(node.path(name), value).unwrap();
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        mount_bind(node.path(name), file).unwrap();
    }

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("conntrack-nearly-full", "95 connections of 100");
    diagnosis.assert_only(&["conntrack-nearly-full"]);
}

#[test]
fn pools_without_addresses_and_those_of_others_are_named() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] =
        json!([{"cidr": "10.244.0.0/28", "block_size": 28}, {"cidr": "fd00:10:244::/126"}]);
    let pods: Vec<_> = (0..2).map(|pod| node.sandbox(&format!("pod{pod}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(&network)));
    network["ipam"]["assign_ipv6"] = json!(false);
    let more: Vec<_> = (0..10).map(|pod| node.sandbox(&format!("more{pod}"))).collect();
    more.iter().for_each(|pod| drop(pod.add(&network)));
    network["ipam"]["assign_ipv6"] = json!(true);
    let ctl = Ctl::new(&node, &network);

    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("pool-exhausted", "pool fd00:10:244::/126: 2 of its 2 addresses");
    diagnosis.assert_found("pool-nearly-exhausted", "pool 10.244.0.0/28: 12 of its 13 addresses");

    node.run(&["ip", "route", "add", "10.244.0.0/16", "via", "192.168.77.2"]);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("pool-overlaps-route", "the host's route 10.244.0.0/16 over uplink0");

    // What the kernel makes of the overlay's own address is nobody else's.
    node.run(&["ip", "route", "del", "10.244.0.0/16"]);
    node.run(&["ip", "link", "add", "mgyvxlan", "type", "bridge"]);
    node.run(&["ip", "link", "set", "mgyvxlan", "up"]);
    node.run(&["ip", "route", "add", "fd00:10:244::1/128", "dev", "mgyvxlan", "proto", "kernel"]);
    let diagnosis = Diagnosis::of(&ctl);
    assert!(!diagnosis.ids().contains(&"pool-overlaps-route"), "{diagnosis:#?}");
}

#[test]
fn a_full_pool_is_an_error_only_where_a_network_has_no_other() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/30", "block_size": 30}]);
    network["ipam"]["assign_ipv6"] = json!(false);
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    Diagnosis::of(&ctl).assert_found("pool-exhausted", "pool 10.244.0.0/30");

    network["ipam"]["pools"] =
        json!([{"cidr": "10.244.0.0/30", "block_size": 30}, {"cidr": "10.245.0.0/24"}]);
    ctl.install(&network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("pool-nearly-exhausted", "pool 10.244.0.0/30");
    diagnosis.assert_only(&["pool-nearly-exhausted"]);

    // The operator has closed it and knows.
    assert_eq!(ctl.run(&["pool", "disable", "10.244.0.0/30"]).code, 0);
    Diagnosis::of(&ctl).assert_only(&[]);
}

/// To one pool's pods it is another way than to the other's.
fn network_of_two_ways(node: &Node) -> Value {
    let mut network = node.network();
    network["mtu"] = json!(1400);
    network["ipam"]["pools"] = json!([
        {"cidr": "10.244.0.0/24"},
        {"cidr": "10.245.0.0/24", "vxlan_mode": "Always"},
    ]);
    network
}
