//! Packets between nodes, with the maps and the packet in memory: what `from_pod` sends to another
//! node, what the hooks on the way out learn of the stack, and what comes in for a pod.

use margay_abi::flow_verdict::{DIRECT, VIA_STACK};
use margay_abi::remote_mode::{PLAIN, VXLAN};
use margay_abi::{PodToNode, Remote};

use crate::{
    fixtures::{
        A, B, ELSEWHERE_V4, End, FAR, HASH, HOST_MAC, IDENTIFICATION, NODE_MAC, NODE_MTU, OVERLAY,
        OWN_NODE, TestPacket, TestTables,
    },
    frames::{self, Ipv4, Ipv6, ethernet, tcp_flags},
    from_node, from_pod, pod_to_node,
    to_pod::{Hook, learn},
    verdict::{DropReason, Family, StackReason, Verdict},
};

const UPLINK: u32 = 3;

// from_pod, to another node

#[test]
fn connection_to_another_node_goes_through_the_overlay_from_its_syn_on() {
    let tables = TestTables::with_remote(VXLAN);
    for flags in [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK] {
        let tcp = frames::tcp(1, 2, flags);
        let mut packet = v4(&A, &FAR, 6, &tcp);

        assert_eq!(send(&mut packet, &tables), Ok(Verdict::Send(Family::Ipv4)));

        assert_eq!(packet.redirected.get(), Some(OVERLAY.ifindex_v4));
        let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, FAR.v4, 6) };
        assert_eq!(packet.bytes, ethernet(NODE_MAC, OVERLAY.mac, 0x0800, &header.packet(&tcp)));
    }
    let tcp = frames::tcp(1, 2, tcp_flags::SYN);
    let mut packet = v6(&A, &FAR, 6, &tcp);
    assert_eq!(send(&mut packet, &tables), Ok(Verdict::Send(Family::Ipv6)));
    let header = Ipv6 { hop_limit: 63, ..Ipv6::new(A.v6, FAR.v6, 6) };
    assert_eq!(packet.bytes, ethernet(NODE_MAC, OVERLAY.mac, 0x86dd, &header.packet(&tcp)));
}

#[test]
fn what_has_a_way_to_the_other_node_gets_its_outer_headers_without_the_device() {
    let syn = frames::tcp(1, 2, tcp_flags::SYN);
    let inside_v4 = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, FAR.v4, 6) }.packet(&syn);
    let inside_v6 = Ipv6 { hop_limit: 63, ..Ipv6::new(A.v6, FAR.v6, 6) }.packet(&syn);
    for (mut packet, ethertype, inside) in
        [(v4(&A, &FAR, 6, &syn), 0x0800, inside_v4), (v6(&A, &FAR, 6, &syn), 0x86dd, inside_v6)]
    {
        let before = packet.bytes.clone();
        packet.way_out = Some(UPLINK);

        let verdict = send(&mut packet, &TestTables::with_remote(VXLAN));

        assert!(matches!(verdict, Ok(Verdict::Send(_))), "{verdict:?}");
        assert_eq!(packet.redirected.get(), Some(UPLINK));
        assert!(packet.is_sent, "taken for the stack's on its way out");
        let inside = ethernet(NODE_MAC, OVERLAY.mac, ethertype, &inside);
        let vxlan = [&[8, 0, 0, 0, 0, 0x10, 0, 0], &inside[..]].concat();
        // The hash, both of whose halves count, over the range of ports.
        let port = 32_768 + ((u64::from(HASH ^ HASH << 16) * (60_999 - 32_768)) >> 32) as u16;
        let mut outer =
            Ipv4::new(OWN_NODE, [192, 168, 0, 9], 17).packet(&frames::udp(port, 4789, &vxlan));
        outer[4..6].copy_from_slice(&IDENTIFICATION.to_be_bytes());
        outer[10..12].fill(0);
        let checksum = frames::checksum(&outer[..20]);
        outer[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(packet.bytes[..14], before[..14], "for the kernel to fill in");
        assert_eq!(packet.bytes[14..], outer);
    }
}

#[test]
fn the_outer_header_has_the_congestion_bits_of_the_packet_inside() {
    for (inside, outside) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0), (0xb9, 1)] {
        let syn = frames::tcp(1, 2, tcp_flags::SYN);
        let (mut of_v4, mut of_v6) = (v4(&A, &FAR, 6, &syn), v6(&A, &FAR, 6, &syn));
        of_v4.bytes[15] = inside;
        of_v6.bytes[14] |= inside >> 4;
        of_v6.bytes[15] = inside << 4;
        for mut packet in [of_v4, of_v6] {
            packet.way_out = Some(UPLINK);
            send(&mut packet, &TestTables::with_remote(VXLAN)).expect("sent");
            assert_eq!(packet.bytes[15], outside, "{inside:#x}");
        }
    }
}

#[test]
fn what_only_the_device_can_encapsulate_goes_to_it() {
    let syn = frames::tcp(1, 2, tcp_flags::SYN);
    let on_ipv6 = [0xfd, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let to_ipv6 = TestTables {
        remote: TestTables::with_remote(VXLAN).remote.map(|way| Remote { node: on_ipv6, ..way }),
        ..TestTables::with_remote(VXLAN)
    };
    let long = [syn.clone(), vec![0; 65_536]].concat();
    let with_a_way = |packet| TestPacket { way_out: Some(UPLINK), ..packet };
    let mut nested = with_a_way(v4(&A, &FAR, 6, &syn));
    nested.is_encapsulated = true;
    let mut told_of = with_a_way(v4(&A, &FAR, 6, &syn));
    told_of.is_listened_to = true;
    // As BIG TCP has it: a length of zero.
    let mut big = with_a_way(v4(&A, &FAR, 6, &long));
    big.gso_size = 1000;
    big.bytes[16..18].fill(0);
    for (mut packet, tables, device) in [
        (v4(&A, &FAR, 6, &syn), TestTables::with_remote(VXLAN), OVERLAY.ifindex_v4),
        (with_a_way(v4(&A, &FAR, 6, &syn)), to_ipv6, OVERLAY.ifindex_v6),
        (nested, TestTables::with_remote(VXLAN), OVERLAY.ifindex_v4),
        (told_of, TestTables::with_remote(VXLAN), OVERLAY.ifindex_v4),
        (big, TestTables::with_remote(VXLAN), OVERLAY.ifindex_v4),
    ] {
        let before = packet.bytes.clone();

        assert_eq!(send(&mut packet, &tables), Ok(Verdict::Send(Family::Ipv4)));

        assert_eq!(packet.redirected.get(), Some(device));
        assert_eq!(packet.bytes.len(), before.len());
        assert_eq!(packet.bytes[22], 63, "a hop less, once");
    }
}

#[test]
fn what_has_no_device_towards_its_node_is_the_stacks() {
    let tables = TestTables {
        overlay: Some(margay_abi::Overlay { ifindex_v4: 0, ..OVERLAY }),
        ..TestTables::with_remote(VXLAN)
    };
    let mut packet = v4(&A, &FAR, 6, &frames::tcp(1, 2, tcp_flags::SYN));
    let before = packet.bytes.clone();

    let verdict = send(&mut packet, &tables);

    assert_eq!(verdict, Ok(Verdict::Stack(StackReason::NotLocal)));
    assert_eq!((packet.bytes, packet.redirected.get()), (before, None));
}

#[test]
fn connection_to_another_node_goes_by_the_hosts_routes_where_the_way_is_plain() {
    let tables = TestTables::with_remote(PLAIN);
    let tcp = frames::tcp(1, 2, tcp_flags::SYN);
    let mut packet = v4(&A, &FAR, 6, &tcp);
    packet.next_hop = Some(UPLINK);

    assert_eq!(send(&mut packet, &tables), Ok(Verdict::Send(Family::Ipv4)));

    assert_eq!(packet.redirected.get(), Some(UPLINK));
    let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, FAR.v4, 6) };
    assert_eq!(packet.bytes[14..], header.packet(&tcp), "the MACs are the kernel's to fill in");
}

#[test]
fn what_has_no_way_is_the_stacks_as_it_is() {
    let without_overlay = TestTables { overlay: None, ..TestTables::with_remote(VXLAN) };
    for tables in [without_overlay, TestTables::with_remote(PLAIN), TestTables::with_remote(9)] {
        let mut packet = v4(&A, &FAR, 6, &frames::tcp(1, 2, tcp_flags::SYN));
        let before = packet.bytes.clone();

        let verdict = send(&mut packet, &tables);

        assert_eq!(verdict, Ok(Verdict::Stack(StackReason::NotLocal)));
        assert_eq!((packet.bytes, packet.redirected.get()), (before, None));
        assert!(!packet.is_sent, "the hook on the way out sees the stack's");
    }
}

#[test]
fn the_rules_for_a_local_pod_hold_for_one_elsewhere() {
    let udp = frames::udp(1, 2, b"");
    let long = frames::udp(1, 2, &[0; NODE_MTU as usize - 28 + 1]);
    let ended = Ipv4 { ttl: 1, ..Ipv4::new(A.v4, FAR.v4, 17) };
    let options = Ipv4 { options: vec![1; 4], ..Ipv4::new(A.v4, FAR.v4, 17) };
    for (ip, payload, reason) in [
        (Ipv4::new(A.v4, FAR.v4, 17), &long, StackReason::IcmpError),
        (ended, &udp, StackReason::IcmpError),
        (options, &udp, StackReason::Unsupported),
        (Ipv4::new(A.v4, FAR.v4, 17), &udp, StackReason::Flow),
        (Ipv4::new(A.v4, FAR.v4, 6), &frames::tcp(1, 2, tcp_flags::ACK), StackReason::Flow),
    ] {
        let tables = TestTables::with_remote(VXLAN);
        let frame = ethernet(HOST_MAC, A.mac, 0x0800, &ip.packet(payload));
        let verdict = send(&mut TestPacket::new(frame), &tables);
        assert_eq!(verdict, Ok(Verdict::Stack(reason)));
        assert!(verdicts(&tables).is_empty(), "{reason:?}");
    }
}

#[test]
fn it_is_the_segments_of_a_large_packet_that_have_to_fit() {
    let tables = TestTables::with_remote(VXLAN);
    let tcp = [frames::tcp(1, 2, tcp_flags::SYN), vec![0; 20_000]].concat();
    for (gso_size, fits) in [(NODE_MTU - 40, true), (NODE_MTU - 39, false)] {
        let mut packet = v4(&A, &FAR, 6, &tcp);
        packet.gso_size = gso_size;
        let verdict = send(&mut packet, &tables);
        assert_eq!(verdict == Ok(Verdict::Send(Family::Ipv4)), fits, "{gso_size}");
    }
}

#[test]
fn datagram_of_an_unknown_flow_becomes_direct_behind_the_stack() {
    let tables = TestTables::with_remote(VXLAN);
    for payload in [frames::udp(1, 2, b""), frames::udp(2, 1, b"")] {
        let mut packet = v4(&A, &FAR, 17, &payload);
        let verdict = send(&mut packet, &tables);
        assert_eq!(verdict, Ok(Verdict::Stack(StackReason::Flow)));

        learn(&packet, &tables, Hook::ToNode).expect("something to learn");

        let mut next = v4(&A, &FAR, 17, &payload);
        assert_eq!(send(&mut next, &tables), Ok(Verdict::Send(Family::Ipv4)));
    }
}

// from_pod, packets for the overlay's port

#[test]
fn pods_may_not_send_to_the_overlays_port_while_there_is_one() {
    let vxlan = frames::udp(1, 4789, b"vxlan");
    let far_v6 = |next_header, payload: &[u8]| {
        ethernet(HOST_MAC, A.mac, 0x86dd, &Ipv6::new(A.v6, FAR.v6, next_header).packet(payload))
    };
    let ipv4 = |ip: Ipv4| ethernet(HOST_MAC, A.mac, 0x0800, &ip.packet(&vxlan));
    let to = |dst| Ipv4::new(A.v4, dst, 17);
    let behind = |kind: u8| [&[17, 0, 0, kind, 0, 0, 0, 0], &vxlan[..]].concat();
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let of_the_link = Ipv6::new(link_local, margay_abi::GATEWAY_V6, 17).packet(&vxlan);
    for frame in [
        ipv4(to(ELSEWHERE_V4)),
        ipv4(to(FAR.v4)),
        ipv4(to(B.v4)),
        ipv4(Ipv4 { options: vec![1; 8], ..to(ELSEWHERE_V4) }),
        ipv4(Ipv4 { fragment: 0x2000, ..to(ELSEWHERE_V4) }),
        far_v6(17, &vxlan),
        far_v6(0, &behind(0)),
        far_v6(43, &behind(0)),
        far_v6(60, &behind(0)),
        far_v6(44, &behind(1)),
        far_v6(60, &[&[60, 0, 0, 0, 0, 0, 0, 0].repeat(7), &behind(0)[..]].concat()),
        ethernet(HOST_MAC, A.mac, 0x86dd, &of_the_link),
    ] {
        let mut packet = TestPacket::new(frame.clone());
        let verdict = send(&mut packet, &TestTables::with_remote(VXLAN));
        assert_eq!(verdict, Err(DropReason::Encapsulated), "{frame:?}");

        let verdict = send(&mut packet, &TestTables::new());
        assert_ne!(verdict, Err(DropReason::Encapsulated), "without an overlay: {frame:?}");
    }
}

#[test]
fn other_ports_and_later_fragments_are_not_taken_for_the_overlays() {
    let vxlan = frames::udp(1, 4789, b"vxlan");
    let fragment = Ipv4 { fragment: 1, ..Ipv4::new(A.v4, ELSEWHERE_V4, 17) };
    let tcp = Ipv4::new(A.v4, ELSEWHERE_V4, 6).packet(&frames::tcp(1, 4789, tcp_flags::SYN));
    let from_it = Ipv4::new(A.v4, ELSEWHERE_V4, 17).packet(&frames::udp(4789, 1, b""));
    let later = [&[17, 0, 0, 8, 0, 0, 0, 0], &vxlan[..]].concat();
    for (ethertype, packet) in [
        (0x0800, fragment.packet(&vxlan)),
        (0x0800, tcp),
        (0x0800, from_it),
        (0x86dd, Ipv6::new(A.v6, FAR.v6, 44).packet(&later)),
        (0x86dd, Ipv6::new(A.v6, FAR.v6, 17).packet(&frames::udp(4789, 1, b""))),
    ] {
        let mut packet = TestPacket::new(ethernet(HOST_MAC, A.mac, ethertype, &packet));
        let verdict = send(&mut packet, &TestTables::with_remote(VXLAN));
        assert!(matches!(verdict, Ok(Verdict::Stack(_))), "{verdict:?}");
    }
}

// to_overlay and to_uplink

#[test]
fn what_the_stack_sends_to_another_node_stays_with_it_both_ways() {
    for (protocol, payload) in [
        (6, frames::tcp(1, 2, tcp_flags::SYN)),
        (6, frames::tcp(1, 2, tcp_flags::ACK)),
        (17, frames::udp(1, 2, b"")),
        (132, frames::sctp(1, 2)),
    ] {
        let tables = TestTables::with_remote(PLAIN);
        learn(&v4(&A, &FAR, protocol, &payload), &tables, Hook::ToNode);
        assert_eq!(verdicts(&tables), [VIA_STACK]);

        let mut answer = v4(&FAR, &A, 6, &frames::tcp(2, 1, tcp_flags::ACK));
        let verdict = from_node::handle(&mut answer, &tables);
        assert_eq!(verdict, Some(Verdict::Stack(StackReason::Flow)));
    }
}

#[test]
fn what_from_pod_sends_to_another_node_teaches_nothing() {
    for known in [DIRECT, VIA_STACK] {
        let tables = TestTables::with_remote(VXLAN);
        for (protocol, payload) in
            [(6, frames::tcp(1, 2, tcp_flags::SYN)), (17, frames::udp(1, 2, b""))]
        {
            tables.flows_v4.borrow_mut().clear();
            let other = TestTables { other_flows: Some(DIRECT), ..TestTables::with_remote(VXLAN) };
            let mut packet = v4(&A, &FAR, protocol, &payload);
            send(&mut packet, &other).expect("sent");

            assert_eq!(learn(&packet, &tables, Hook::ToNode), None, "{known}");
            assert!(verdicts(&tables).is_empty());
            assert_ne!(learn(&packet, &tables, Hook::ToPod), None, "no proof anywhere else");
        }
    }
}

#[test]
fn nothing_is_learnt_of_flows_that_are_not_from_here_to_another_node() {
    let tables = TestTables::with_remote(PLAIN);
    let udp = frames::udp(1, 2, b"");
    for (src, dst) in [(A.v4, ELSEWHERE_V4), (ELSEWHERE_V4, FAR.v4), (FAR.v4, FAR.v4)] {
        let frame = ethernet([2; 6], [4; 6], 0x0800, &Ipv4::new(src, dst, 17).packet(&udp));
        learn(&TestPacket::new(frame), &tables, Hook::ToNode);
    }
    assert!(verdicts(&tables).is_empty());
}

#[test]
fn what_the_stack_sends_to_a_pod_from_another_node_stays_with_it() {
    let tables = TestTables::with_remote(VXLAN);

    learn(&v4(&FAR, &A, 6, &frames::tcp(1, 2, tcp_flags::ACK)), &tables, Hook::ToPod);

    assert_eq!(verdicts(&tables), [VIA_STACK]);
}

// from_overlay and from_uplink

#[test]
fn connection_from_another_node_is_delivered_from_its_syn_on() {
    for mode in [VXLAN, PLAIN] {
        let tables = TestTables::with_remote(mode);
        for flags in [tcp_flags::SYN, tcp_flags::ACK] {
            let tcp = frames::tcp(1, 2, flags);
            let mut packet = arriving(v4(&FAR, &A, 6, &tcp));

            let verdict = from_node::handle(&mut packet, &tables);

            let delivered = |family| Some(Verdict::Deliver { ifindex: A.ifindex, family });
            assert_eq!(verdict, delivered(Family::Ipv4));
            let header = Ipv4 { ttl: 63, ..Ipv4::new(FAR.v4, A.v4, 6) };
            assert_eq!(packet.bytes, ethernet(A.mac, HOST_MAC, 0x0800, &header.packet(&tcp)));

            let mut packet = arriving(v6(&FAR, &A, 6, &tcp));
            let verdict = from_node::handle(&mut packet, &tables);
            assert_eq!(verdict, delivered(Family::Ipv6));
            let header = Ipv6 { hop_limit: 63, ..Ipv6::new(FAR.v6, A.v6, 6) };
            assert_eq!(packet.bytes, ethernet(A.mac, HOST_MAC, 0x86dd, &header.packet(&tcp)));
        }
    }
}

#[test]
fn datagram_from_another_node_becomes_direct_behind_the_stack() {
    let tables = TestTables::with_remote(VXLAN);
    let udp = frames::udp(1, 2, b"");
    let mut packet = arriving(v4(&FAR, &A, 17, &udp));
    let verdict = from_node::handle(&mut packet, &tables);
    assert_eq!(verdict, Some(Verdict::Stack(StackReason::Flow)));

    learn(&packet, &tables, Hook::ToPod).expect("something to learn");

    let mut next = arriving(v4(&FAR, &A, 17, &udp));
    let verdict = from_node::handle(&mut next, &tables);
    assert!(matches!(verdict, Some(Verdict::Deliver { .. })), "{verdict:?}");
}

#[test]
fn what_is_not_between_pods_is_not_even_counted() {
    let tables = TestTables::with_remote(PLAIN);
    let syn = frames::tcp(1, 2, tcp_flags::SYN);
    for (src, dst) in [(ELSEWHERE_V4, A.v4), (FAR.v4, ELSEWHERE_V4), (B.v4, A.v4)] {
        let frame = ethernet([2; 6], [4; 6], 0x0800, &Ipv4::new(src, dst, 6).packet(&syn));
        let mut packet = arriving(TestPacket::new(frame));
        assert_eq!(from_node::handle(&mut packet, &tables), None);
    }
    for frame in [ethernet([2; 6], [4; 6], 0x0806, &[0; 28]), vec![0; 13]] {
        let mut packet = arriving(TestPacket::new(frame));
        assert_eq!(from_node::handle(&mut packet, &tables), None);
    }
}

#[test]
fn nothing_that_comes_from_another_node_is_dropped() {
    let tables = TestTables::with_remote(PLAIN);
    let mut broken = frames::tcp(1, 2, tcp_flags::SYN);
    broken[12] = 0xf0;
    let mut for_another = arriving(v4(&FAR, &A, 6, &frames::tcp(1, 2, tcp_flags::SYN)));
    for_another.is_for_another_host = true;
    let mut tagged = arriving(v4(&FAR, &A, 6, &frames::tcp(1, 2, tcp_flags::SYN)));
    tagged.has_vlan_tag = true;
    for mut packet in [arriving(v4(&FAR, &A, 6, &broken)), for_another, tagged] {
        let verdict = from_node::handle(&mut packet, &tables);
        assert_eq!(verdict, Some(Verdict::Stack(StackReason::Unsupported)));
    }
    let whole = v4(&FAR, &A, 6, &frames::tcp(1, 2, tcp_flags::SYN)).bytes;
    for len in 0..whole.len() {
        let mut packet = arriving(TestPacket::new(whole[..len].to_vec()));
        let verdict = from_node::handle(&mut packet, &tables);
        assert!(matches!(verdict, None | Some(Verdict::Stack(_))), "{len} bytes");
    }
}

#[test]
fn a_pod_with_a_limited_bandwidth_gets_nothing_past_the_stack() {
    let tables = TestTables {
        remote: TestTables::with_remote(PLAIN).remote,
        ..TestTables::with_flags(margay_abi::pod_flags::SHAPED)
    };
    let syn = frames::tcp(1, 2, tcp_flags::SYN);

    let mut packet = arriving(v4(&FAR, &A, 6, &syn));
    let verdict = from_node::handle(&mut packet, &tables);
    assert_eq!(verdict, Some(Verdict::Stack(StackReason::Flow)));
    let verdict = send(&mut v4(&A, &FAR, 6, &syn), &tables);
    assert_eq!(verdict, Ok(Verdict::Stack(StackReason::Flow)));
}

/// Hands a pod's packet to `from_pod`, and to `pod_to_node` what that leaves to the stack.
fn send(packet: &mut TestPacket, tables: &TestTables) -> Result<Verdict, DropReason> {
    let (reason, sender_flags) = match from_pod::handle(packet, tables)? {
        Verdict::Stack(reason) => (reason, 0),
        Verdict::Elsewhere { flags } => (StackReason::NotLocal, flags),
        verdict => return Ok(verdict),
    };
    match pod_to_node::handle(packet, PodToNode { reason: reason as u32, sender_flags }, tables) {
        Ok(Verdict::Elsewhere { .. }) => Ok(Verdict::Stack(reason)),
        outcome => outcome,
    }
}

/// A frame of a pod to its host veth.
fn v4(from: &End, to: &End, protocol: u8, payload: &[u8]) -> TestPacket {
    let packet = Ipv4::new(from.v4, to.v4, protocol).packet(payload);
    TestPacket::new(ethernet(HOST_MAC, from.mac, 0x0800, &packet))
}

fn v6(from: &End, to: &End, next_header: u8, payload: &[u8]) -> TestPacket {
    let packet = Ipv6::new(from.v6, to.v6, next_header).packet(payload);
    TestPacket::new(ethernet(HOST_MAC, from.mac, 0x86dd, &packet))
}

/// The same at the interface that the node's packets come in by.
fn arriving(packet: TestPacket) -> TestPacket {
    TestPacket { ifindex: UPLINK, ..packet }
}

fn verdicts(tables: &TestTables) -> Vec<u8> {
    let v4 = tables.flows_v4.borrow();
    v4.values().chain(tables.flows_v6.borrow().values()).copied().collect()
}
