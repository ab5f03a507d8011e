//! What `to_pod` learns, packet by packet, with the maps and the packet in memory.

use margay_abi::FlowKeyV4;
use margay_abi::flow_verdict::{DIRECT, VIA_STACK};

use crate::{
    fixtures::{A, B, ELSEWHERE_V4, HOST_MAC, TestPacket, TestTables},
    flow_hash,
    frames::{self, Ipv4, Ipv6, ethernet, tcp_flags},
    from_pod::handle,
    ip::Directed,
    to_pod::{Hook, learn},
};

#[test]
fn both_directions_of_a_flow_between_pods_stay_with_the_stack() {
    for (protocol, payload) in [
        (6, frames::tcp(1, 2, tcp_flags::ACK)),
        (17, frames::udp(1, 2, b"")),
        (132, frames::sctp(1, 2)),
    ] {
        let tables = TestTables::new();

        learn_v4(&tables, &Ipv4::new(A.v4, B.v4, protocol).packet(&payload));
        learn_v6(&tables, &Ipv6::new(A.v6, B.v6, protocol).packet(&payload));

        assert_eq!(verdicts_v4(&tables), [VIA_STACK]);
        assert_eq!(verdicts_v6(&tables), [VIA_STACK]);
    }
    let tables = TestTables::new();
    learn_v4(&tables, &Ipv4::new(A.v4, B.v4, 1).packet(&frames::echo(8, 1)));
    assert_eq!(verdicts_v4(&tables), [VIA_STACK]);
}

#[test]
fn flow_whose_packet_the_stack_left_alone_is_direct_both_ways() {
    let udp = frames::udp(1, 2, b"");
    for (protocol, payload) in [(17, &udp), (1, &frames::echo(0, 1))] {
        let tables = TestTables::new();
        let mut packet = to_b_v4(protocol, payload);
        handle(&mut packet, &tables).expect("passes");

        learn(&packet, &tables, Hook::ToPod);
        assert_eq!(verdicts_v4(&tables), [DIRECT]);
        learn(&packet, &tables, Hook::ToPod);
        assert_eq!(verdicts_v4(&tables), [DIRECT], "one that comes right behind it");
    }
    for (protocol, payload) in [(17, &udp), (58, &frames::echo(129, 1))] {
        let tables = TestTables::new();
        let frame = Ipv6::new(A.v6, B.v6, protocol).packet(payload);
        let mut packet = TestPacket::new(ethernet(HOST_MAC, A.mac, 0x86dd, &frame));
        handle(&mut packet, &tables).expect("passes");

        learn(&packet, &tables, Hook::ToPod);
        assert_eq!(verdicts_v6(&tables), [DIRECT]);
    }
}

#[test]
fn what_nat_gives_the_tuple_of_another_packet_is_the_stacks() {
    let tables = TestTables::new();
    // A socket that speaks to the pod behind its Service: conntrack gives it another port.
    let mut changed = to_b_v4(17, &frames::udp(1000, 53, b""));
    handle(&mut changed, &tables).expect("passes");
    changed.bytes = frame_v4(&Ipv4::new(A.v4, B.v4, 17).packet(&frames::udp(1001, 53, b"")));
    learn(&changed, &tables, Hook::ToPod);
    assert_eq!(verdicts_v4(&tables), [VIA_STACK]);

    // And what it sends to the Service comes out with the tuple that the other went in with.
    learn_v4(&tables, &Ipv4::new(A.v4, B.v4, 17).packet(&frames::udp(1000, 53, b"")));
    assert_eq!(verdicts_v4(&tables), [VIA_STACK; 2]);
}

#[test]
fn flow_of_the_stack_stays_there_whatever_the_packet_shows() {
    let tables = TestTables::new();
    let mut packet = to_b_v4(17, &frames::udp(1000, 53, b""));
    handle(&mut packet, &tables).expect("passes");
    learn(&packet, &tables, Hook::ToPod);
    tables.flows_v4.borrow_mut().values_mut().for_each(|verdict| *verdict = VIA_STACK);

    learn(&packet, &tables, Hook::ToPod);

    assert_eq!(verdicts_v4(&tables), [VIA_STACK]);
}

#[test]
fn connections_are_not_begun_here_whatever_the_packet_shows() {
    let tables = TestTables::new();
    for flags in [tcp_flags::SYN, tcp_flags::ACK] {
        let mut packet = to_b_v4(6, &frames::tcp(1000, 80, flags));
        let key = FlowKeyV4 {
            src: A.v4,
            dst: B.v4,
            src_port: 1000_u16.to_be_bytes(),
            dst_port: 80_u16.to_be_bytes(),
            protocol: 6,
            reserved: [0; 3],
        };
        packet.flow_hash = flow_hash::of(&Directed { key, is_reversed: false });

        learn(&packet, &tables, Hook::ToPod);

        assert_eq!(verdicts_v4(&tables), [VIA_STACK]);
    }
}

#[test]
fn direct_flow_that_the_stack_gets_becomes_the_stacks() {
    let tables = TestTables::new();
    learn_v4(&tables, &Ipv4::new(A.v4, B.v4, 17).packet(&frames::udp(1, 2, b"")));
    tables.flows_v4.borrow_mut().values_mut().for_each(|verdict| *verdict = DIRECT);

    learn_v4(&tables, &Ipv4::new(B.v4, A.v4, 17).packet(&frames::udp(2, 1, b"")));

    assert_eq!(verdicts_v4(&tables), [VIA_STACK]);
}

#[test]
fn senders_that_are_not_pods_teach_nothing() {
    let tables = TestTables::new();

    learn_v4(&tables, &Ipv4::new(ELSEWHERE_V4, B.v4, 17).packet(&frames::udp(1, 2, b"")));

    assert_eq!(verdicts_v4(&tables), []);
}

#[test]
fn first_fragments_teach_and_later_ones_do_not() {
    let udp = frames::udp(1, 2, b"");
    for (fragment, learnt) in [(0x2000, 1), (0x2001, 0), (0x0001, 0)] {
        let tables = TestTables::new();
        let header = Ipv4 { fragment, ..Ipv4::new(A.v4, B.v4, 17) };
        learn_v4(&tables, &header.packet(&udp));
        assert_eq!(verdicts_v4(&tables).len(), learnt, "IPv4 {fragment:#x}");

        let offset_and_more = ((fragment & 0x1fff) << 3 | 1).to_be_bytes();
        let extension = [17, 0, offset_and_more[0], offset_and_more[1], 0, 0, 0, 9];
        let payload = [&extension[..], &udp].concat();
        learn_v6(&tables, &Ipv6::new(A.v6, B.v6, 44).packet(&payload));
        assert_eq!(verdicts_v6(&tables).len(), learnt, "IPv6 {fragment:#x}");
    }
}

#[test]
fn options_do_not_hide_the_ports() {
    let with_options = TestTables::new();
    let without = TestTables::new();
    let header = Ipv4::new(A.v4, B.v4, 17);
    let options = Ipv4 { options: vec![1; 40], ..header.clone() };

    learn_v4(&with_options, &options.packet(&frames::udp(1, 2, b"")));
    learn_v4(&without, &header.packet(&frames::udp(1, 2, b"")));

    assert_eq!(*with_options.flows_v4.borrow(), *without.flows_v4.borrow());
}

#[test]
fn extension_headers_do_not_hide_the_ports() {
    let udp = frames::udp(1, 2, b"");
    let (short, long) = ([0; 6], [0; 22]);
    for (first, extensions, what) in [
        (0, vec![[&[17, 0], &short[..]].concat()], "hop-by-hop options"),
        (60, vec![[&[17, 2], &long[..]].concat()], "long destination options"),
        (
            43,
            vec![[&[44, 0], &short[..]].concat(), vec![17, 0, 0, 1, 0, 0, 0, 9]],
            "a routing header, a fragment",
        ),
        (0, [60, 43, 60, 17].map(|next| [&[next, 0], &short[..]].concat()).to_vec(), "one of each"),
    ] {
        let tables = TestTables::new();
        let payload = [extensions.concat(), udp.clone()].concat();

        learn_v6(&tables, &Ipv6::new(A.v6, B.v6, first).packet(&payload));

        assert_eq!(verdicts_v6(&tables), [VIA_STACK], "{what}");
    }
}

#[test]
fn extension_headers_that_do_not_end_teach_nothing() {
    let tables = TestTables::new();

    for units in [1, 255] {
        let payload = [&[17, units, 0, 0, 0, 0, 0, 0], &frames::udp(1, 2, b"")[..]].concat();
        learn_v6(&tables, &Ipv6::new(A.v6, B.v6, 60).packet(&payload[..15]));
    }
    learn_v6(&tables, &Ipv6::new(A.v6, B.v6, 60).packet(&[[60, 0, 0, 0, 0, 0, 0, 0]; 9].concat()));

    assert_eq!(verdicts_v6(&tables), []);
}

#[test]
fn icmp_errors_and_protocols_without_flows_teach_nothing() {
    let tables = TestTables::new();
    let quoted = Ipv4::new(B.v4, A.v4, 17).packet(&frames::udp(1, 2, b""));

    learn_v4(&tables, &Ipv4::new(A.v4, B.v4, 1).packet(&frames::icmp_error(3, &quoted)));
    learn_v4(&tables, &Ipv4::new(A.v4, B.v4, 47).packet(&[0; 8]));
    learn_v6(&tables, &Ipv6::new(A.v6, B.v6, 60).packet(&[0; 8]));

    assert_eq!(verdicts_v4(&tables), []);
    assert_eq!(verdicts_v6(&tables), []);
}

#[test]
fn truncated_packets_teach_nothing() {
    let whole = frame_v4(&Ipv4::new(A.v4, B.v4, 17).packet(&frames::udp(1, 2, b"data")));
    for len in 0..whole.len() {
        let tables = TestTables::new();
        learn(&TestPacket::new(whole[..len].to_vec()), &tables, Hook::ToPod);
        assert_eq!(verdicts_v4(&tables), [], "{len} bytes");
    }
}

/// What A sends to B.
fn to_b_v4(protocol: u8, payload: &[u8]) -> TestPacket {
    let packet = Ipv4::new(A.v4, B.v4, protocol).packet(payload);
    TestPacket::new(ethernet(HOST_MAC, A.mac, 0x0800, &packet))
}

fn learn_v4(tables: &TestTables, packet: &[u8]) {
    learn(&TestPacket::new(frame_v4(packet)), tables, Hook::ToPod);
}

fn learn_v6(tables: &TestTables, packet: &[u8]) {
    learn(&TestPacket::new(ethernet(A.mac, HOST_MAC, 0x86dd, packet)), tables, Hook::ToPod);
}

fn frame_v4(packet: &[u8]) -> Vec<u8> {
    ethernet(A.mac, HOST_MAC, 0x0800, packet)
}

fn verdicts_v4(tables: &TestTables) -> Vec<u8> {
    tables.flows_v4.borrow().values().copied().collect()
}

fn verdicts_v6(tables: &TestTables) -> Vec<u8> {
    tables.flows_v6.borrow().values().copied().collect()
}
