//! A pod that lies about who it is gets nowhere.

use std::net::{IpAddr, SocketAddr};

use margay_abi::{Counter, HOST_VETH_MAC};
use margay_tests::node::{NODE_V4, NODE_V6, WORLD_V4, WORLD_V6};
use margay_tests::packet::{self, Ipv4};
use margay_tests::pod::address;
use margay_tests::traffic::{SILENCE, assert_ping, udp};
use margay_tests::{Node, Pod};

#[test]
fn a_pod_that_uses_an_address_of_another_pod_or_of_nobody_is_cut_off() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (liar, victim) = (node.sandbox("liar"), node.sandbox("victim"));
    liar.add(&network);
    let victim_result = victim.add(&network);
    for (ipv4, nobody, world, host) in
        [(true, "172.31.9.9", WORLD_V4, NODE_V4), (false, "fd00:bad::9", WORLD_V6, NODE_V6)]
    {
        let victim_ip = address(&victim_result, ipv4);
        // The gateway is known from here on: what is sent is not held back for ARP or NDP.
        assert_ping(&liar, host.parse().unwrap());
        for stolen in [victim_ip, nobody.parse().unwrap()] {
            // A pod that is privileged over its own network namespace.
            let prefix = if ipv4 { 32 } else { 128 };
            let stolen_prefix = format!("{stolen}/{prefix}");
            let mut add = vec!["ip", "addr", "add", &stolen_prefix, "dev", "eth0"];
            if !ipv4 {
                add.push("nodad");
            }
            liar.run(&add);
            let before = node.packets(Counter::DropSpoofedSource);

            assert_silent(&liar, stolen, node.world(), world.parse().unwrap());
            assert_silent(&liar, stolen, &node, host.parse().unwrap());
            if stolen != victim_ip {
                assert_silent(&liar, stolen, &victim, victim_ip);
            }

            assert!(node.packets(Counter::DropSpoofedSource) >= before + 2, "{stolen}");
            liar.run(&["ip", "addr", "del", &stolen_prefix, "dev", "eth0"]);
        }
        assert_ping(&node, victim_ip);
        assert_ping(&liar, victim_ip);
    }
}

/// The kernel takes tags of VLAN 0 off and goes on as if there had been none.
#[test]
fn a_vlan_tag_does_not_hide_a_stolen_address() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let result = pod.add(&node.network());
    let mac = pod.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap().mac);
    let destination: SocketAddr = format!("{NODE_V4}:7777").parse().unwrap();
    let receiver = udp(&node, destination);
    receiver.set_read_timeout(Some(SILENCE)).unwrap();
    let received = || receiver.recv_from(&mut [0; 64]).is_ok();
    let own = address(&result, true);

    pod.send_frame("eth0", &datagram(mac, 0, own, destination));
    assert!(received(), "without a tag, with its own address");
    pod.send_frame("eth0", &datagram(mac, 1, own, destination));
    assert!(received(), "with a tag, with its own address");

    for tags in 0..=3 {
        let before = node.packets(Counter::DropSpoofedSource);
        let stolen = "172.31.9.9".parse().unwrap();
        pod.send_frame("eth0", &datagram(mac, tags, stolen, destination));
        assert!(!received(), "{tags} tags");
        assert_eq!(node.packets(Counter::DropSpoofedSource), before + 1, "{tags} tags");
    }
}

/// A UDP datagram over IPv4 without checksum, behind tags of VLAN 0.
fn datagram(mac: [u8; 6], tags: usize, source: IpAddr, destination: SocketAddr) -> Vec<u8> {
    let (IpAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
        panic!("IPv4 only");
    };
    let udp = packet::udp(9, destination.port(), b"I am somebody else");
    let mut frame = [HOST_VETH_MAC, mac].concat();
    frame.extend([0x81, 0x00, 0, 0].repeat(tags));
    frame.extend([0x08, 0x00]);
    frame.extend(Ipv4::new(source.octets(), destination.ip().octets(), 17).packet(&udp));
    frame
}

#[test]
fn a_pod_that_uses_another_mac_address_is_cut_off() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let result = pod.add(&node.network());
    let ip = address(&result, true);
    assert_ping(&pod, NODE_V4.parse().unwrap());

    pod.run(&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    let before = node.packets(Counter::DropSpoofedSource);

    assert_silent(&pod, ip, &node, NODE_V4.parse().unwrap());
    assert!(node.packets(Counter::DropSpoofedSource) > before);
}

/// Sends datagrams from an address that is not the sender's, and asserts that none arrives.
fn assert_silent(
    from: &Pod<'_>,
    source: IpAddr,
    to: &impl margay_tests::traffic::Place,
    destination: IpAddr,
) {
    let receiver = udp(to, SocketAddr::new(destination, 0));
    receiver.set_read_timeout(Some(SILENCE)).unwrap();
    let sender = udp(from, SocketAddr::new(source, 0));
    for _ in 0..3 {
        sender.send_to(b"I am somebody else", receiver.local_addr().unwrap()).unwrap();
    }
    let received = receiver.recv_from(&mut [0; 64]);
    assert!(received.is_err(), "{source} to {destination}: {received:?}");
}
