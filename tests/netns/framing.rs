//! Frames in the shapes that the kernel's own sockets do not make.

use std::net::{IpAddr, SocketAddr};

use margay_abi::{Counter, HOST_VETH_MAC};
use margay_tests::Node;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet};
use margay_tests::pod::address;
use margay_tests::traffic::udp;
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
        let before = node.packets(counter);

        a.send_scattered_frame("eth0", &frame);

        let mut buffer = vec![0; 9000];
        let (length, sender) = receiver.recv_from(&mut buffer).expect("the datagram");
        assert_eq!(sender, SocketAddr::new(ip_a, 4000));
        assert!(buffer[..length] == payload);
        assert_eq!(node.packets(counter), before + 1);
    }
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
