//! Pods and what is beyond their node.

use std::net::IpAddr;

use margay_abi::Counter;
use margay_tests::node::{WORLD_V4, WORLD_V6};
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::Value;

#[test]
fn a_pod_and_the_world_outside_reach_each_other_through_the_hosts_stack() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let result = pod.add(&node.network());

    for (ipv4, world) in [(true, WORLD_V4), (false, WORLD_V6)] {
        let world: IpAddr = world.parse().unwrap();
        assert_ping(&pod, world);
        assert_tcp(&pod, node.world(), world);
        assert_ping(node.world(), address(&result, ipv4));
        assert_tcp(node.world(), &pod, address(&result, ipv4));
    }

    assert!(node.packets(Counter::StackNotLocal) > 10);
    assert!(node.packets(Counter::ToPod) > 10);
    assert_eq!(node.packets(Counter::DirectV4), 0);
}

#[test]
fn an_address_that_is_no_pods_is_the_stacks_to_answer() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod: Pod<'_> = node.sandbox("a");
    let result: Value = pod.add(&network);
    let gone = node.sandbox("b");
    let gone_address = address(&gone.add(&network), true);
    assert_ping(&pod, gone_address);

    gone.del(&network);

    assert!(!margay_tests::traffic::answers_ping(&pod, gone_address));
    assert_ping(&node, address(&result, true));
}
