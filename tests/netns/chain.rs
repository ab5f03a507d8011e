//! Traffic of a pod whose network is a chain: what the plugins behind margay do to it.

use std::net::SocketAddr;

use margay_abi::Counter;
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::{Served, answers_ping, assert_ping};
use margay_tests::{Conflist, Node};
use serde_json::{Value, json};

const HOST_PORT: u16 = 30080;
const POD_PORT: u16 = 8080;

#[test]
fn a_host_port_leads_to_its_pod_from_outside_from_the_host_and_from_any_pod() {
    let Some(node) = Node::new() else { return };
    let mappings = ["tcp", "udp"].map(
        |protocol| json!({"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": protocol}),
    );
    let list = Conflist::of(&network(&node))
        .then(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    let (server, neighbour) = (node.sandbox("server"), node.sandbox("neighbour"));
    let exposing = list.clone().runtime("portMappings", json!(mappings));
    let result = exposing.add(&server).success();
    list.add(&neighbour).success();

    for ipv4 in [true, false] {
        let inside = SocketAddr::new(address(&result, ipv4), POD_PORT);
        let served = Served::at(&server, inside);
        served.assert_has_host_port(&node, (&server, inside), &neighbour, HOST_PORT);
    }
}

#[test]
fn a_mac_address_is_asked_of_margay_and_of_tuning_alike() {
    let Some(node) = Node::new() else { return };
    let mac = "02:00:00:00:0a:0b";
    let mut network = network(&node);
    network["capabilities"] = json!({"mac": true});
    let list = Conflist::of(&network)
        .then(tuning(&node, json!({"capabilities": {"mac": true}})))
        .runtime("mac", json!(mac));
    let pod = node.sandbox("a");

    let result = list.add(&pod).success();

    assert_eq!(result["interfaces"][1]["mac"], mac);
    for ipv4 in [true, false] {
        assert_ping(&pod, node_address(ipv4));
        assert_ping(&node, address(&result, ipv4));
    }
    let check = list.check(&pod, &result);
    assert!(check.is_success(), "{}", check.stdout());
    list.del(&pod, Some(&result)).success();
}

#[test]
fn a_mac_address_that_margay_does_not_know_cuts_the_pod_off_and_check_says_so() {
    let Some(node) = Node::new() else { return };
    let mac = "02:00:00:00:0a:0b";
    let list = Conflist::of(&network(&node)).then(tuning(&node, json!({"mac": mac})));
    let pod = node.sandbox("a");
    let result = list.add(&pod).success();
    assert_eq!(result["interfaces"][1]["mac"], mac, "tuning says what it did");

    assert!(!answers_ping(&pod, node_address(true)));
    assert!(node.packets(Counter::DropSpoofedSource) > 0);
    let (code, message) = list.check(&pod, &result).error();

    assert_eq!(code, 104, "{message}");
    assert!(message.contains(mac) && message.contains("runtimeConfig.mac"), "{message}");
    list.del(&pod, Some(&result)).success();
    assert_eq!(node.pod_links(), []);
}

/// The network in a version that all reference plugins speak.
fn network(node: &Node) -> Value {
    let mut network = node.network();
    network["cniVersion"] = json!("1.0.0");
    network
}

fn tuning(node: &Node, mut settings: Value) -> Value {
    settings["type"] = json!("tuning");
    settings["dataDir"] = json!(node.path("state/tuning"));
    settings
}
