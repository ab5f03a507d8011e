//! What `from_pod` decides, packet by packet, with the maps and the packet in memory.

use margay_abi::{FlowKeyV4, GATEWAY_V4, GATEWAY_V6, flow_verdict, pod_flags};

use crate::{
    fixtures::{A, B, ELSEWHERE_V4, ELSEWHERE_V6, HOST_MAC, MTU, TestPacket, TestTables},
    flow_hash,
    frames::{self, Ipv4, Ipv6, ethernet, tcp_flags},
    from_pod::handle,
    ip::Directed,
    verdict::{Answered, DropReason, Family, StackReason, Verdict},
};

type Outcome = Result<Verdict, DropReason>;

const DELIVERED_V4: Outcome = Ok(Verdict::Deliver { ifindex: B.ifindex, family: Family::Ipv4 });
const DELIVERED_V6: Outcome = Ok(Verdict::Deliver { ifindex: B.ifindex, family: Family::Ipv6 });
const UNSUPPORTED: Outcome = Ok(Verdict::Stack(StackReason::Unsupported));
const FLOW: Outcome = Ok(Verdict::Stack(StackReason::Flow));
const ICMP_ERROR: Outcome = Ok(Verdict::Stack(StackReason::IcmpError));
const CONTROL: Outcome = Ok(Verdict::Stack(StackReason::Control));
const MULTICAST: Outcome = Ok(Verdict::Stack(StackReason::Multicast));
const NOT_LOCAL: Outcome = Ok(Verdict::Elsewhere { flags: 0 });
const SPOOFED: Outcome = Err(DropReason::SpoofedSource);
const MALFORMED: Outcome = Err(DropReason::Malformed);

const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn syn_is_delivered_and_its_connection_remembered_both_ways() {
    let tables = TestTables::new();

    assert_eq!(run(&tables, v4(6, &frames::tcp(1000, 80, tcp_flags::SYN))), DELIVERED_V4);

    let flows = tables.flows_v4.borrow();
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[&key(6, 1000, 80)], flow_verdict::DIRECT);
}

#[test]
fn flow_that_cannot_be_remembered_is_the_stacks_from_its_beginning() {
    let tables = TestTables { remembers_nothing: true, ..TestTables::new() };

    assert_eq!(run(&tables, v4(6, &frames::tcp(1000, 80, tcp_flags::SYN))), FLOW);
    assert_eq!(run(&tables, v6(58, &frames::echo(128, 7))), FLOW);
}

#[test]
fn echo_request_is_delivered_and_its_reply_follows_it() {
    let tables = TestTables::new();
    for (request, reply, delivered) in [
        (v4(1, &frames::echo(8, 7)), v4(1, &frames::echo(0, 7)), DELIVERED_V4),
        (v6(58, &frames::echo(128, 7)), v6(58, &frames::echo(129, 7)), DELIVERED_V6),
    ] {
        assert_eq!(run(&tables, reply.clone()), FLOW, "whose request nobody has seen");
        assert_eq!(run(&tables, request), delivered);
        assert_eq!(run(&tables, reply), delivered);
    }
    let (v4, v6) = (tables.flows_v4.borrow(), tables.flows_v6.borrow());
    assert_eq!((v4.len(), v6.len()), (1, 1), "an entry for both ways");
    assert_eq!(v4[&key(1, 7, 7)], flow_verdict::DIRECT);
}

#[test]
fn echo_request_of_a_flow_of_the_stack_is_the_stacks() {
    let tables = TestTables::new();
    tables.flows_v4.borrow_mut().insert(key(1, 7, 7), flow_verdict::VIA_STACK);

    assert_eq!(run(&tables, v4(1, &frames::echo(8, 7))), FLOW);

    assert_eq!(tables.flows_v4.borrow()[&key(1, 7, 7)], flow_verdict::VIA_STACK);
}

#[test]
fn without_a_beginning_the_stack_gets_what_is_unknown_with_its_hash() {
    let udp = |src_port| v4(17, &frames::udp(src_port, 53, b"?"));
    for frame in [
        udp(1000),
        v4(1, &frames::echo(0, 7)),
        v6(17, &frames::udp(1, 2, b"")),
        v6(58, &frames::echo(129, 7)),
    ] {
        let tables = TestTables::new();
        let mut packet = TestPacket::new(frame.clone());

        assert_eq!(handle(&mut packet, &tables), FLOW);

        assert_ne!(packet.flow_hash, 0);
        assert_eq!(packet.bytes, frame);
        assert!(tables.flows_v4.borrow().is_empty() && tables.flows_v6.borrow().is_empty());
    }
    let mut packet = TestPacket::new(udp(1000));
    handle(&mut packet, &TestTables::new()).expect("passes");
    assert_eq!(
        packet.flow_hash,
        flow_hash::of(&Directed { key: key(17, 1000, 53), is_reversed: false })
    );
}

#[test]
fn what_the_stack_has_for_another_reason_carries_no_hash() {
    let tables = TestTables::new();
    tables.flows_v4.borrow_mut().insert(key(17, 1000, 53), flow_verdict::VIA_STACK);
    let fragment = Ipv4 { fragment: 0x2000, ..Ipv4::new(A.v4, B.v4, 17) };
    for frame in [
        v4(17, &frames::udp(1000, 53, b"?")),
        v4(6, &frames::tcp(1, 2, tcp_flags::ACK)),
        v4(132, &frames::sctp(1, 2)),
        v6(132, &frames::sctp(1, 2)),
        frame_v4(&fragment.packet(&frames::udp(1, 2, b""))),
        frame_v4(&Ipv4::new(A.v4, ELSEWHERE_V4, 17).packet(&frames::udp(1, 2, b""))),
    ] {
        let mut packet = TestPacket::new(frame);
        let verdict = handle(&mut packet, &tables);
        assert!(matches!(verdict, Ok(Verdict::Stack(_) | Verdict::Elsewhere { .. })));
        assert_eq!(packet.flow_hash, 0);
    }
}

#[test]
fn every_protocol_with_flows_is_delivered() {
    let tables = TestTables::all_direct();
    for (protocol, payload) in [
        (6, frames::tcp(1, 2, tcp_flags::SYN)),
        (17, frames::udp(1, 2, b"")),
        (132, frames::sctp(1, 2)),
    ] {
        assert_eq!(run(&tables, v4(protocol, &payload)), DELIVERED_V4);
        assert_eq!(run(&tables, v6(protocol, &payload)), DELIVERED_V6);
    }
    for icmp_type in [0, 8] {
        assert_eq!(run(&tables, v4(1, &frames::echo(icmp_type, 7))), DELIVERED_V4);
    }
    for icmp_type in [128, 129] {
        assert_eq!(run(&tables, v6(58, &frames::echo(icmp_type, 7))), DELIVERED_V6);
    }
}

#[test]
fn what_shaped_pods_send_each_other_goes_to_the_stack_whatever_the_flow() {
    let tables = TestTables::with_flags(pod_flags::SHAPED);
    tables.flows_v4.borrow_mut().insert(key(6, 1, 2), flow_verdict::DIRECT);
    for payload in [frames::tcp(1, 2, tcp_flags::SYN), frames::tcp(1, 2, tcp_flags::FIN)] {
        assert_eq!(run(&tables, v4(6, &payload)), FLOW);
        assert_eq!(run(&tables, v6(6, &payload)), FLOW);
    }
    assert_eq!(run(&tables, v4(17, &frames::udp(1, 2, b""))), FLOW);
    assert_eq!(tables.flows_v4.borrow().len(), 1);
}

#[test]
fn tcp_whose_beginning_was_not_seen_goes_to_the_stack() {
    for flags in [tcp_flags::ACK, tcp_flags::SYN | tcp_flags::ACK, 0] {
        let tables = TestTables::new();

        assert_eq!(run(&tables, v4(6, &frames::tcp(1, 2, flags))), FLOW);

        assert!(tables.flows_v4.borrow().is_empty());
    }
}

#[test]
fn fin_of_an_unknown_flow_is_lost_once() {
    let tables = TestTables::new();
    let fin = v4(6, &frames::tcp(1, 2, tcp_flags::FIN | tcp_flags::ACK));
    let mut first = TestPacket::new(fin.clone());
    let mut second = TestPacket::new(fin.clone());

    assert_eq!(handle(&mut first, &tables), FLOW);
    assert_eq!(handle(&mut second, &tables), FLOW);

    assert_eq!(first.bytes, v4(6, &frames::tcp(1, 2, tcp_flags::ACK)));
    assert_eq!(second.bytes, fin);
    assert_eq!(tables.flows_v4.borrow()[&key(6, 1, 2)], flow_verdict::VIA_STACK);
}

#[test]
fn reset_of_an_unknown_flow_goes_to_the_stack_as_it_is() {
    for flags in [tcp_flags::RST, tcp_flags::RST | tcp_flags::FIN] {
        let tables = TestTables::new();
        let reset = v4(6, &frames::tcp(1, 2, flags));
        let mut packet = TestPacket::new(reset.clone());

        assert_eq!(handle(&mut packet, &tables), FLOW);

        assert_eq!(packet.bytes, reset);
        assert!(tables.flows_v4.borrow().is_empty());
    }
}

#[test]
fn syn_of_a_flow_of_the_stack_stays_with_it() {
    let tables = TestTables::new();
    tables.flows_v4.borrow_mut().insert(key(6, 1, 2), flow_verdict::VIA_STACK);

    for flags in [tcp_flags::ACK, tcp_flags::SYN, tcp_flags::ACK] {
        assert_eq!(run(&tables, v4(6, &frames::tcp(1, 2, flags))), FLOW);
    }

    assert_eq!(tables.flows_v4.borrow()[&key(6, 1, 2)], flow_verdict::VIA_STACK);
}

#[test]
fn connection_is_the_same_flow_from_either_end() {
    let tables = TestTables::new();
    let back = |flags| {
        let ip = Ipv4::new(B.v4, A.v4, 6).packet(&frames::tcp(80, 1000, flags));
        let bytes = frames::ethernet(HOST_MAC, B.mac, 0x0800, &ip);
        TestPacket { ifindex: B.ifindex, ..TestPacket::new(bytes) }
    };
    let answer = tcp_flags::SYN | tcp_flags::ACK;
    assert_eq!(handle(&mut back(answer), &tables), FLOW, "unknown flow");

    assert_eq!(run(&tables, v4(6, &frames::tcp(1000, 80, tcp_flags::SYN))), DELIVERED_V4);

    let delivered = handle(&mut back(answer), &tables);
    let to_a = Verdict::Deliver { ifindex: A.ifindex, family: Family::Ipv4 };
    assert_eq!(delivered, Ok(to_a));
}

#[test]
fn icmp_error_follows_the_flow_that_it_quotes() {
    let quoted = Ipv4::new(B.v4, A.v4, 17).packet(&frames::udp(53, 1000, b""));
    for icmp_type in [3, 4, 5, 11, 12] {
        let error = v4(1, &frames::icmp_error(icmp_type, &quoted));
        let tables = TestTables::new();

        assert_eq!(run(&tables, error.clone()), FLOW, "unknown flow");
        tables.flows_v4.borrow_mut().insert(key(17, 1000, 53), flow_verdict::VIA_STACK);
        assert_eq!(run(&tables, error.clone()), FLOW);
        tables.flows_v4.borrow_mut().insert(key(17, 1000, 53), flow_verdict::DIRECT);
        assert_eq!(run(&tables, error), DELIVERED_V4);
        assert_eq!(tables.flows_v4.borrow().len(), 1, "an error begins nothing");
    }
}

#[test]
fn icmp_error_with_an_unreadable_quote_goes_to_the_stack() {
    let whole = Ipv4::new(B.v4, A.v4, 17);
    let udp = frames::udp(53, 1000, b"");
    for (quoted, what) in [
        (Ipv4 { options: vec![1; 4], ..whole.clone() }.packet(&udp), "options"),
        (Ipv4 { fragment: 0x2000, ..whole.clone() }.packet(&udp), "a fragment"),
        (Ipv4 { protocol: 47, ..whole.clone() }.packet(&udp), "a protocol without flows"),
        (Ipv4 { src: A.v4, ..whole.clone() }.packet(&udp), "not sent by the receiver"),
        (whole.packet(&udp)[..24].to_vec(), "cut off"),
    ] {
        let outcome = run(&TestTables::new(), v4(1, &frames::icmp_error(3, &quoted)));
        assert_eq!(outcome, UNSUPPORTED, "{what}");
    }
}

#[test]
fn what_the_programs_do_not_understand_goes_to_the_stack() {
    let udp = frames::udp(1, 2, b"");
    let header = Ipv4::new(A.v4, B.v4, 17);
    for (packet, what) in [
        (Ipv4 { options: vec![1; 4], ..header.clone() }.packet(&udp), "options"),
        (Ipv4 { fragment: 0x2000, ..header.clone() }.packet(&udp), "first fragment"),
        (Ipv4 { fragment: 0x0001, ..header.clone() }.packet(&udp), "last fragment"),
        (Ipv4 { protocol: 47, ..header }.packet(&udp), "GRE"),
        (Ipv4::new(A.v4, B.v4, 1).packet(&frames::echo(13, 1)), "ICMP timestamp"),
    ] {
        assert_eq!(run(&TestTables::new(), frame_v4(&packet)), UNSUPPORTED, "{what}");
    }
    for next_header in [0, 43, 44, 51, 60, 253] {
        assert_eq!(
            run(&TestTables::new(), v6(next_header, &[17, 0, 0, 0, 0, 0, 0, 0])),
            UNSUPPORTED
        );
    }
    let for_another_mac = ethernet([2; 6], A.mac, 0x0800, &Ipv4::new(A.v4, B.v4, 17).packet(&udp));
    assert_eq!(run(&TestTables::new(), for_another_mac), UNSUPPORTED);
    let lldp = ethernet(HOST_MAC, A.mac, 0x88cc, &[0; 60]);
    assert_eq!(run(&TestTables::new(), lldp), UNSUPPORTED);
}

#[test]
fn a_vlan_tag_sends_what_is_the_pods_to_the_stack_and_hides_nothing_else() {
    let udp = frames::udp(1, 2, b"");
    let tagged = |frame: Vec<u8>| {
        let mut packet = TestPacket::new(frame);
        packet.has_vlan_tag = true;
        handle(&mut packet, &TestTables::new())
    };
    assert_eq!(tagged(v4(17, &udp)), UNSUPPORTED);
    assert_eq!(tagged(v6(17, &udp)), UNSUPPORTED);
    let request = frames::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4));
    assert_eq!(tagged(ethernet([255; 6], A.mac, 0x0806, &request)), CONTROL);
    let solicitation = frames::solicitation(A.v6, GATEWAY_V6, GATEWAY_V6, A.mac);
    let solicitation =
        Ipv6 { hop_limit: 255, ..Ipv6::new(A.v6, GATEWAY_V6, 58) }.packet(&solicitation);
    assert_eq!(tagged(frame_v6(&solicitation)), CONTROL);
    let stolen = Ipv4::new(ELSEWHERE_V4, B.v4, 17).packet(&udp);
    assert_eq!(tagged(frame_v4(&stolen)), SPOOFED);
    for ethertype in [0x8100, 0x88a8] {
        let tag_behind_a_tag = ethernet(HOST_MAC, A.mac, ethertype, &[0; 60]);
        assert_eq!(tagged(tag_behind_a_tag.clone()), SPOOFED);
        assert_eq!(run(&TestTables::new(), tag_behind_a_tag), SPOOFED);
    }
}

#[test]
fn groups_and_strangers_are_the_stacks() {
    let udp = frames::udp(1, 2, b"");
    for dst in [[224, 0, 0, 1], [239, 1, 2, 3], [255; 4]] {
        let packet = Ipv4::new(A.v4, dst, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v4(&packet)), MULTICAST);
    }
    let to_nodes = Ipv6::new(A.v6, ALL_NODES, 17).packet(&udp);
    assert_eq!(run(&TestTables::new(), frame_v6(&to_nodes)), MULTICAST);
    let broadcast = ethernet([255; 6], A.mac, 0x0800, &Ipv4::new(A.v4, B.v4, 17).packet(&udp));
    assert_eq!(run(&TestTables::new(), broadcast), MULTICAST);
    for dst in [ELSEWHERE_V4, A.v4] {
        let packet = Ipv4::new(A.v4, dst, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v4(&packet)), NOT_LOCAL);
    }
    let packet = Ipv6::new(A.v6, ELSEWHERE_V6, 17).packet(&udp);
    assert_eq!(run(&TestTables::new(), frame_v6(&packet)), NOT_LOCAL);
}

#[test]
fn source_must_be_the_pods_own_in_address_mac_and_interface() {
    let udp = frames::udp(1, 2, b"");
    for src in [B.v4, ELSEWHERE_V4, [0; 4], [127, 0, 0, 1], [224, 0, 0, 1]] {
        let packet = Ipv4::new(src, B.v4, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v4(&packet)), SPOOFED, "{src:?}");
    }
    for src in [B.v6, ELSEWHERE_V6, ALL_NODES] {
        let packet = Ipv6::new(src, B.v6, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v6(&packet)), SPOOFED, "{src:?}");
    }
    let other_mac = ethernet(HOST_MAC, B.mac, 0x0800, &Ipv4::new(A.v4, B.v4, 17).packet(&udp));
    assert_eq!(run(&TestTables::new(), other_mac), SPOOFED);
    let mut elsewhere = TestPacket::new(v4(17, &udp));
    elsewhere.ifindex = B.ifindex;
    assert_eq!(handle(&mut elsewhere, &TestTables::new()), SPOOFED);
}

#[test]
fn source_is_checked_before_a_packet_is_left_to_the_stack() {
    let header = Ipv4 { fragment: 0x2000, options: vec![1; 8], ..Ipv4::new(B.v4, A.v4, 47) };

    assert_eq!(run(&TestTables::new(), frame_v4(&header.packet(&[0; 8]))), SPOOFED);
    let extended = Ipv6::new(B.v6, A.v6, 0).packet(&[0; 8]);
    assert_eq!(run(&TestTables::new(), frame_v6(&extended)), SPOOFED);
}

#[test]
fn link_scope_sources_stay_on_the_link() {
    let udp = frames::udp(1, 2, b"");
    for src in [LINK_LOCAL, [0; 16]] {
        let off_link = Ipv6::new(src, B.v6, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v6(&off_link)), SPOOFED);
        let on_link = Ipv6::new(src, GATEWAY_V6, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v6(&on_link)), CONTROL);
        let to_group = Ipv6::new(src, ALL_NODES, 17).packet(&udp);
        assert_eq!(run(&TestTables::new(), frame_v6(&to_group)), MULTICAST);
        let report = Ipv6::new(src, ALL_NODES, 0).packet(&[58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0]);
        assert_eq!(run(&TestTables::new(), frame_v6(&report)), CONTROL);
        let router_solicitation = Ipv6::new(src, ALL_NODES, 58).packet(&[133, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(run(&TestTables::new(), frame_v6(&router_solicitation)), CONTROL);
    }
}

#[test]
fn router_messages_of_a_pod_are_dropped_however_they_are_wrapped() {
    let wrapped = |next_header, payload: &[u8]| {
        run(
            &TestTables::new(),
            frame_v6(&Ipv6::new(LINK_LOCAL, ALL_NODES, next_header).packet(payload)),
        )
    };
    let message = |icmp_type| [icmp_type, 0, 0, 0, 0, 0, 0, 0];
    for icmp_type in [134, 137] {
        assert_eq!(wrapped(58, &message(icmp_type)), Err(DropReason::RouterMessage));
        for extension in [0, 43, 60] {
            let payload = [[58, 0, 1, 4, 0, 0, 0, 0], message(icmp_type)].concat();
            assert_eq!(wrapped(extension, &payload), Err(DropReason::RouterMessage));
        }
    }
    let twice = [[60, 0, 1, 4, 0, 0, 0, 0], [58, 0, 1, 4, 0, 0, 0, 0], message(134)].concat();
    assert_eq!(wrapped(0, &twice), Err(DropReason::RouterMessage));
}

#[test]
fn used_up_hop_limits_are_left_to_the_stack() {
    let udp = frames::udp(1, 2, b"");
    for limit in [0, 1] {
        let tables = TestTables::new();
        let packet = Ipv4 { ttl: limit, ..Ipv4::new(A.v4, B.v4, 17) }.packet(&udp);
        assert_eq!(run(&tables, frame_v4(&packet)), ICMP_ERROR);
        let packet = Ipv6 { hop_limit: limit, ..Ipv6::new(A.v6, B.v6, 17) }.packet(&udp);
        assert_eq!(run(&tables, frame_v6(&packet)), ICMP_ERROR);
        assert!(tables.flows_v4.borrow().is_empty() && tables.flows_v6.borrow().is_empty());
    }
}

#[test]
fn longest_packet_is_held_against_the_receivers_mtu() {
    let fitting = frames::udp(1, 2, &[0; MTU as usize - 28]);
    let longer = frames::udp(1, 2, &[0; MTU as usize - 27]);
    assert_eq!(run(&TestTables::all_direct(), v4(17, &fitting)), DELIVERED_V4);
    assert_eq!(run(&TestTables::new(), v4(17, &longer)), ICMP_ERROR);

    let mut segments = TestPacket::new(v4(17, &frames::udp(1, 2, &[0; 9000])));
    segments.gso_size = MTU - 28;
    assert_eq!(handle(&mut segments.clone(), &TestTables::all_direct()), DELIVERED_V4);
    segments.gso_size += 1;
    assert_eq!(handle(&mut segments, &TestTables::new()), ICMP_ERROR);
}

#[test]
fn length_of_zero_means_all_of_a_gso_packet() {
    let mut big = TestPacket::new(v4(6, &frames::tcp(1, 2, tcp_flags::SYN)));
    big.bytes[16..18].fill(0);
    assert_eq!(handle(&mut big.clone(), &TestTables::new()), MALFORMED);
    big.gso_size = 1000;
    assert_eq!(handle(&mut big, &TestTables::new()), DELIVERED_V4);
}

#[test]
fn delivered_packet_is_what_a_router_would_have_made_of_it() {
    let mut packet = TestPacket::new(v4(17, &frames::udp(1, 2, b"data")));
    let before = packet.bytes.clone();

    assert_eq!(handle(&mut packet, &TestTables::all_direct()), DELIVERED_V4);

    let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, B.v4, 17) };
    let expected = ethernet(B.mac, HOST_MAC, 0x0800, &header.packet(&before[34..]));
    assert_eq!(packet.bytes, expected);
}

#[test]
fn contradicting_lengths_are_dropped() {
    let good = v4(6, &frames::tcp(1, 2, tcp_flags::SYN));
    for (offset, value, what) in [
        (14, 0x55, "version 5"),
        (14, 0x44, "header shorter than 20 bytes"),
        (17, 255, "longer than the frame"),
        (17, 19, "shorter than its header"),
        (17, 39, "TCP header cut off"),
        (46, 0x40, "TCP header shorter than 20 bytes"),
        (46, 0xf0, "TCP header longer than the packet"),
    ] {
        let mut bytes = good.clone();
        bytes[offset] = value;
        assert_eq!(run(&TestTables::new(), bytes), MALFORMED, "{what}");
    }
}

#[test]
fn no_truncation_of_any_packet_takes_the_fast_path() {
    for (name, whole) in valid_packets() {
        for len in 0..whole.len() {
            let mut tables = TestTables::with_flags(pod_flags::ANSWER_ANY);
            tables.other_flows = Some(flow_verdict::DIRECT);
            let outcome = run(&tables, whole[..len].to_vec());
            let is_fast = matches!(outcome, Ok(Verdict::Deliver { .. } | Verdict::Answer(_)));
            assert!(!is_fast, "{name} of {} bytes cut to {len}: {outcome:?}", whole.len());
        }
    }
}

#[test]
fn no_changed_byte_of_any_packet_panics() {
    for (_, whole) in valid_packets() {
        for offset in 0..whole.len() {
            for value in [0, 1, 0x0f, 0x40, 0x7f, 0x80, 0xf0, 0xff] {
                let mut bytes = whole.clone();
                bytes[offset] = value;
                for len in [bytes.len(), bytes.len() / 2, bytes.len().saturating_sub(1)] {
                    for tables in [TestTables::new(), TestTables::all_direct()] {
                        let _ = run(&tables, bytes[..len].to_vec());
                    }
                }
            }
        }
    }
}

/// Packets that take the fast path as they are.
fn valid_packets() -> Vec<(&'static str, Vec<u8>)> {
    let request = frames::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4));
    let ask = |src| {
        let message = frames::solicitation(src, GATEWAY_V6, GATEWAY_V6, A.mac);
        frame_v6(&Ipv6 { hop_limit: 255, ..Ipv6::new(src, GATEWAY_V6, 58) }.packet(&message))
    };
    let packets = vec![
        ("TCP over IPv4", v4(6, &frames::tcp(1, 2, tcp_flags::SYN))),
        ("TCP over IPv6", v6(6, &frames::tcp(1, 2, tcp_flags::SYN))),
        ("UDP over IPv4", v4(17, &frames::udp(1, 2, b"data"))),
        ("UDP over IPv6", v6(17, &frames::udp(1, 2, b"data"))),
        ("SCTP over IPv4", v4(132, &frames::sctp(1, 2))),
        ("echo over IPv4", v4(1, &frames::echo(8, 1))),
        ("echo over IPv6", v6(58, &frames::echo(128, 1))),
        ("ARP", ethernet([255; 6], A.mac, 0x0806, &request)),
        ("solicitation", ask(A.v6)),
        ("solicitation from a link-local address", ask(LINK_LOCAL)),
    ];
    for (name, bytes) in &packets {
        let outcome = run(&TestTables::all_direct(), bytes.clone());
        let is_fast = matches!(
            outcome,
            Ok(Verdict::Deliver { .. } | Verdict::Answer(Answered::Arp | Answered::Ndp))
        );
        assert!(is_fast, "{name}: {outcome:?}");
    }
    packets
}

fn run(tables: &TestTables, bytes: Vec<u8>) -> Outcome {
    handle(&mut TestPacket::new(bytes), tables)
}

fn frame_v4(packet: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, A.mac, 0x0800, packet)
}

fn frame_v6(packet: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, A.mac, 0x86dd, packet)
}

/// From A to B.
fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame_v4(&Ipv4::new(A.v4, B.v4, protocol).packet(payload))
}

/// From A to B.
fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    frame_v6(&Ipv6::new(A.v6, B.v6, next_header).packet(payload))
}

fn key(protocol: u8, src_port: u16, dst_port: u16) -> FlowKeyV4 {
    FlowKeyV4 {
        src: A.v4,
        dst: B.v4,
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
        protocol,
        reserved: [0; 3],
    }
}
