//! What a pod and its node say to each other on the link itself.

use std::net::{IpAddr, SocketAddr};

use margay_abi::Counter;
use margay_tests::Node;
use margay_tests::cluster::wait_until;
use margay_tests::node::node_address;
use margay_tests::traffic::{assert_ping, udp};

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

/// A kernel that gets an ARP reply by a frame for everybody holds it for hearsay, and asks again.
#[test]
fn the_pod_believes_an_answer_at_once() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network());

    for (gateway, ipv4) in [("169.254.1.1", true), ("fe80::ecee:eeff:feee:eeee", false)] {
        pod.run(&["ip", "neigh", "flush", "dev", "eth0"]);
        let any: IpAddr = if ipv4 { [0; 4].into() } else { [0; 16].into() };
        // Nothing comes back that would confirm it.
        let datagram = udp(&pod, SocketAddr::new(any, 0));
        datagram.send_to(b"?", SocketAddr::new(node_address(ipv4), 9)).unwrap();
        let is = |states: &[&str]| {
            let question = ["ip", "neigh", "show", "dev", "eth0", "to", gateway];
            let states = states.iter().flat_map(|state| ["nud", state]);
            !pod.run(&question.into_iter().chain(states).collect::<Vec<_>>()).is_empty()
        };
        wait_until("an answer", || is(&["reachable", "stale", "delay", "probe"]));
        assert!(is(&["reachable"]), "{gateway}");
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
