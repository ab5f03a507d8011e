//! Frames in the shapes that the kernel's own sockets do not make.

use std::net::{IpAddr, SocketAddr};

use margay_abi::{Counter, HOST_VETH_MAC};
use margay_tests::Node;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet};
use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::traffic::{assert_ping, udp};
use serde_json::json;

#[test]
fn headers_beyond_the_linear_part_are_read_all_the_same() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["mtu"] = json!(9000);
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));
    let mac = a.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap().mac);
    let payload = vec![7; 6000];

    for (ipv4, counter) in [(true, Counter::DirectV4), (false, Counter::DirectV6)] {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        let receiver = udp(&b, SocketAddr::new(ip_b, 0));
        let port = receiver.local_addr().unwrap().port();
        let frame =
            datagram(mac, SocketAddr::new(ip_a, 4000), SocketAddr::new(ip_b, port), &payload);
        // The first by way of the stack, the second directly.
        for direct in 0..2 {
            let before = node.packets(counter);

            a.send_scattered_frame("eth0", &frame);

            let mut buffer = vec![0; 9000];
            let (length, sender) = receiver.recv_from(&mut buffer).expect("the datagram");
            assert_eq!(sender, SocketAddr::new(ip_a, 4000));
            assert!(buffer[..length] == payload);
            assert_eq!(node.packets(counter), before + direct);
        }
    }
}

/// What the client's options hide from a program, conntrack sees: the answer is the stack's too.
#[test]
fn a_datagram_with_ipv6_options_is_answered_from_the_address_of_the_service() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (ip_a, ip_b) = (address(&a.add(&network), false), address(&b.add(&network), false));
    // What an interface sends before the kernel has come to its carrier is dropped.
    assert_ping(&a, ip_b);
    let mac = a.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap().mac);
    let server = udp(&b, SocketAddr::new(ip_b, 0));
    let service: SocketAddr = "[fd00:96::10]:80".parse().unwrap();
    node.expose(Protocol::Udp, service, server.local_addr().unwrap());

    for next_header in [0, 60] {
        let client = udp(&a, SocketAddr::new(ip_a, 0));
        let plain = datagram(mac, client.local_addr().unwrap(), service, b"question");
        let options = [17, 0, 1, 4, 0, 0, 0, 0];
        a.send_frame("eth0", &with_extension(plain, next_header, options));

        let (_, asker) = server.recv_from(&mut [0; 16]).expect("the question");
        server.send_to(b"answer", asker).unwrap();

        let (_, answerer) = client.recv_from(&mut [0; 16]).expect("the answer");
        assert_eq!(answerer, service, "extension header {next_header}");
    }
}

/// Puts an extension header behind the IPv6 header of a frame.
fn with_extension(mut frame: Vec<u8>, next_header: u8, extension: [u8; 8]) -> Vec<u8> {
    frame[14 + 5] += 8;
    frame[14 + 6] = next_header;
    frame.splice(14 + 40..14 + 40, extension);
    frame
}

fn datagram(mac: packet::Mac, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut udp = packet::udp(from.port(), to.port(), payload);
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let packet = Ipv4::new(src.octets(), dst.octets(), 17).packet(&udp);
            ethernet(HOST_VETH_MAC, mac, 0x0800, &packet)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            // Unlike over IPv4, a datagram needs its checksum (RFC 8200, section 8.1).
            let length = (udp.len() as u32).to_be_bytes();
            let pseudo_header =
                [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, 17]].concat();
            let checksum = packet::checksum(&[&pseudo_header[..], &udp].concat());
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
            let packet = Ipv6::new(src.octets(), dst.octets(), 17).packet(&udp);
            ethernet(HOST_VETH_MAC, mac, 0x86dd, &packet)
        }
        families => panic!("{families:?}"),
    }
}
