//! What a pod and its node say to each other on the link itself.

use margay_abi::Counter;
use margay_tests::Node;
use margay_tests::node::node_address;
use margay_tests::traffic::assert_ping;

#[test]
fn the_gateway_is_answered_for_again_after_the_pod_forgets_it() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network());

    for (ipv4, counter) in [(true, Counter::ArpAnswered), (false, Counter::NdpAnswered)] {
        for round in 1..=3 {
            let before = node.packets(counter);
            pod.run(&["ip", "neigh", "flush", "dev", "eth0"]);
            assert_ping(&pod, node_address(ipv4));
            assert!(node.packets(counter) > before, "round {round}");
        }
    }
}

#[test]
fn the_gateway_can_be_spoken_to_over_ipv6() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network());

    pod.run(&["ping", "-n", "-c", "2", "-i", "0.1", "-W", "2", "fe80::ecee:eeff:feee:eeee%eth0"]);
}

#[test]
fn probes_for_a_pods_own_address_are_not_answered() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network());
    let before = node.packets(Counter::DropArpIgnored);

    // An address that is added with ARP announcements on: the kernel tells everybody.
    pod.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify"]);
    pod.run(&["ip", "link", "set", "eth0", "down"]);
    pod.run(&["ip", "link", "set", "eth0", "up"]);

    assert!(node.packets(Counter::DropArpIgnored) > before);
}
