//! VXLAN without the device: what margay's programs put in front of pods' packets.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use margay_abi::{Counter, HOST_VETH_MAC};
use margay_tests::neighbours::{OVERLAY, UNDERLAY, Way};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};
use margay_tests::pod::address;
use margay_tests::raw::{Capture, segment};
use margay_tests::traffic::{PATIENCE, assert_tcp, receive, udp, udp_exchange};
use margay_tests::{Neighbours, Pod, node, requirements};

use crate::nodes::assert_transfer;

#[test]
fn outer_headers_are_those_that_the_kernels_device_writes() {
    let Some(nodes) = past_the_device() else { return };
    let ((a, of_a), (_b, of_b)) = (nodes.pod(0, "a"), nodes.pod(1, "b"));
    let mac = a.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap().mac);
    let capture = capture_underlay(&nodes);
    for ipv4 in [true, false] {
        let ends = [address(&of_a, ipv4), address(&of_b, ipv4)];
        // Every kind of congestion bits, with and without a class of traffic; sizes odd and even.
        for (index, tos) in (0..=3).flat_map(|bits| [bits, 0xb8 | bits]).enumerate() {
            let port = 1000 + index as u16;
            let frame = syn(mac, ends, port, tos, 100 + index);
            let of_this = |frame: &[u8]| inner_port(frame) == Some(port);

            let before = [sent_past_the_stack(&nodes), sent_by_the_device(&nodes)];
            a.send_frame("eth0", &frame);
            let by_program = capture.next(of_this);
            let after = [sent_past_the_stack(&nodes), sent_by_the_device(&nodes)];
            assert_eq!(after, [before[0] + 1, before[1]], "{ends:?}, {tos:#x}");

            nodes.forget(0);
            a.send_frame("eth0", &frame);
            let by_device = capture.next(of_this);
            nodes.tell(0);
            assert_eq!(sent_by_the_device(&nodes), before[1] + 1);

            // On Linux 7.2, unlike 6.18, the device takes the last port of its range too, and so for about
            // half of all hashes the next one.
            let [ours, theirs] = [&by_program, &by_device].map(|frame| outer_port(frame));
            assert!([ours, ours + 1].contains(&theirs), "{ends:?}, {tos:#x}: {ours}, {theirs}");
            let [by_program, by_device] = [by_program, by_device].map(without_variables);
            assert_eq!(by_program, by_device, "{ends:?}, {tos:#x}");
        }
    }
}

#[test]
fn a_connection_between_nodes_never_meets_the_senders_device() {
    let Some(nodes) = past_the_device() else { return };
    let ((a, of_a), (b, of_b)) = (nodes.pod(0, "a"), nodes.pod(1, "b"));
    for ipv4 in [true, false] {
        let before = sent_by_the_device(&nodes);
        assert_tcp(&a, &b, address(&of_b, ipv4));
        assert_tcp(&b, &a, address(&of_a, ipv4));
        assert_transfer(&a, &b, address(&of_b, ipv4));
        assert_eq!(sent_by_the_device(&nodes), before);
    }
}

#[test]
fn what_does_not_fit_the_way_between_the_nodes_is_cut_by_the_device() {
    let Some(nodes) = past_the_device() else { return };
    nodes.enter(0, || narrow_way("main"));
    assert_large_packets_take_the_device(&nodes);
}

#[test]
fn routes_are_asked_for_vxlans_packets_as_the_device_asks() {
    let Some(nodes) = past_the_device() else { return };
    nodes.enter(0, || {
        narrow_way("100");
        node::run(&["ip", "rule", "add", "ipproto", "udp", "dport", "4789", "lookup", "100"]);
    });
    assert_large_packets_take_the_device(&nodes);
}

/// Two nodes whose programs write VXLAN headers, for which the kernel has to tell them the source.
fn past_the_device() -> Option<Neighbours> {
    if requirements::linux(6, 7) { Neighbours::connected(Way::Vxlan) } else { None }
}

fn narrow_way(table: &str) {
    let way = ["172.30.0.2", "dev", UNDERLAY, "mtu", "lock", "1200", "table", table];
    node::run(&[&["ip", "route", "add"][..], &way].concat());
}

fn assert_large_packets_take_the_device(nodes: &Neighbours) {
    let ((a, _), (b, of_b)) = (nodes.pod(0, "a"), nodes.pod(1, "b"));
    for ipv4 in [true, false] {
        let before = sent_by_the_device(nodes);
        assert_tcp(&a, &b, address(&of_b, ipv4));
        assert_eq!(sent_by_the_device(nodes), before, "what fits goes without it");

        assert_transfer(&a, &b, address(&of_b, ipv4));

        assert!(sent_by_the_device(nodes) > before);
    }
}

#[test]
fn datagrams_that_the_kernel_cuts_apart_for_a_pod_arrive_each_for_itself() {
    const BYTES: usize = 1000;
    let Some(nodes) = Neighbours::connected(Way::Vxlan) else { return };
    let ((a, of_a), (b, of_b)) = (nodes.pod(0, "a"), nodes.pod(1, "b"));
    for ipv4 in [true, false] {
        let (client, server) = ends_of_udp(&a, address(&of_a, ipv4), &b, address(&of_b, ipv4));
        let before = sent_past_the_stack(&nodes);
        segment(&client, BYTES as u16);
        let datagrams: Vec<Vec<u8>> = (0..8).map(|number| vec![number; BYTES]).collect();

        client.send_to(&datagrams.concat(), server.local_addr().unwrap()).unwrap();

        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 2 * BYTES];
        for expected in &datagrams {
            let (length, _) = receive(&server, &mut buffer).expect("a datagram");
            assert_eq!(buffer[..length], expected[..]);
        }
        assert!(sent_past_the_stack(&nodes) > before);
    }
}

/// Sockets that have spoken with each other until their flow was direct.
fn ends_of_udp(
    a: &Pod<'_>,
    ip_a: IpAddr,
    b: &Pod<'_>,
    ip_b: IpAddr,
) -> (std::net::UdpSocket, std::net::UdpSocket) {
    let (client, server) = (udp(a, SocketAddr::new(ip_a, 0)), udp(b, SocketAddr::new(ip_b, 0)));
    for _ in 0..3 {
        udp_exchange(&client, &server, server.local_addr().unwrap()).expect("exchange");
    }
    (client, server)
}

/// Of what comes to the second node.
fn capture_underlay(nodes: &Neighbours) -> Capture {
    nodes.enter(1, || {
        let links = nodes.node(1).netlink(async |netlink| netlink.links().await.unwrap());
        let link = links.iter().find(|link| link.name == UNDERLAY).unwrap();
        Capture::on(link.index)
    })
}

/// A SYN of a pod.
fn syn(mac: [u8; 6], ends: [IpAddr; 2], port: u16, tos: u8, data: usize) -> Vec<u8> {
    let payload = [packet::tcp(port, 80, tcp_flags::SYN), vec![0; data]].concat();
    match ends {
        [IpAddr::V4(a), IpAddr::V4(b)] => {
            let mut packet = Ipv4::new(a.octets(), b.octets(), 6).packet(&payload);
            packet[1] = tos;
            packet[10..12].fill(0);
            let checksum = packet::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            ethernet(HOST_VETH_MAC, mac, 0x0800, &packet)
        }
        [IpAddr::V6(a), IpAddr::V6(b)] => {
            let mut packet = Ipv6::new(a.octets(), b.octets(), 6).packet(&payload);
            packet[0] |= tos >> 4;
            packet[1] = tos << 4;
            ethernet(HOST_VETH_MAC, mac, 0x86dd, &packet)
        }
        _ => unreachable!("of one family"),
    }
}

/// The TCP source port of a frame in VXLAN over IPv4.
fn inner_port(frame: &[u8]) -> Option<u16> {
    let is_vxlan = frame.get(12..14)? == [8, 0] && frame.get(36..38)? == 4789_u16.to_be_bytes();
    let inside = frame.get(64..).filter(|_| is_vxlan)?;
    let tcp = if inside.first()? >> 4 == 4 { 20 } else { 40 };
    Some(u16::from_be_bytes([*inside.get(tcp)?, *inside.get(tcp + 1)?]))
}

/// The outer source port.
fn outer_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

/// The outer header's identification is another one for each packet, and its checksum with it; source
/// ports are held against each other by themselves.
fn without_variables(mut frame: Vec<u8>) -> Vec<u8> {
    assert_eq!(packet::checksum(&frame[14..34]), 0);
    frame[18..20].fill(0);
    frame[24..26].fill(0);
    frame[34..36].fill(0);
    frame
}

fn sent_past_the_stack(nodes: &Neighbours) -> u64 {
    nodes.packets(0, Counter::ToNodeV4) + nodes.packets(0, Counter::ToNodeV6)
}

/// Packets that the first node's VXLAN device has sent.
fn sent_by_the_device(nodes: &Neighbours) -> u64 {
    const SENT_PACKETS: usize = 9;
    nodes.enter(0, || {
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let mut lines = devices.lines().filter_map(|line| line.trim().split_once(':'));
        let (_, numbers) = lines.find(|(name, _)| *name == OVERLAY).unwrap();
        numbers.split_whitespace().nth(SENT_PACKETS).unwrap().parse().unwrap()
    })
}
