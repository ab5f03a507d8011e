//! Delivery into another pod, and what is done to the packet.

use margay_abi::Counter;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{A, B, Bench, HOST_MAC, MTU, a_to_b_v4, a_to_b_v6, frame_v4, frame_v6};

#[test]
fn every_protocol_with_flows_is_delivered_over_ipv4() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2), (132, 1, 2), (1, 7, 7), (1, 8, 8)]);
    for (protocol, payload) in [
        (6, packet::tcp(1, 2, tcp_flags::SYN)),
        (17, packet::udp(1, 2, b"data")),
        (132, packet::sctp(1, 2)),
        (1, packet::echo(8, 7)),
        (1, packet::echo(0, 8)),
    ] {
        let outcome = bench.pod_sends(&a_to_b_v4(protocol, &payload));

        outcome.expect_redirect(Counter::DirectV4);
        let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, B.v4, protocol) };
        assert_eq!(outcome.frame, ethernet(B.mac, HOST_MAC, 0x0800, &header.packet(&payload)));
        assert_eq!(packet::checksum(&outcome.frame[14..34]), 0, "header checksum");
    }
}

#[test]
fn every_protocol_with_flows_is_delivered_over_ipv6() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2), (132, 1, 2), (58, 7, 7), (58, 8, 8)]);
    for (next_header, payload) in [
        (6, packet::tcp(1, 2, tcp_flags::SYN)),
        (17, packet::udp(1, 2, b"data")),
        (132, packet::sctp(1, 2)),
        (58, packet::echo(128, 7)),
        (58, packet::echo(129, 8)),
    ] {
        let outcome = bench.pod_sends(&a_to_b_v6(next_header, &payload));

        outcome.expect_redirect(Counter::DirectV6);
        let header = Ipv6 { hop_limit: 63, ..Ipv6::new(A.v6, B.v6, next_header) };
        assert_eq!(outcome.frame, ethernet(B.mac, HOST_MAC, 0x86dd, &header.packet(&payload)));
    }
}

#[test]
fn every_ttl_above_one_goes_down_by_one_with_a_right_checksum() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2)]);
    for ttl in 2..=255 {
        let header = Ipv4 { ttl, ..Ipv4::new(A.v4, B.v4, 17) };

        let outcome = bench.pod_sends(&frame_v4(&header.packet(&packet::udp(1, 2, b""))));

        outcome.expect_redirect(Counter::DirectV4);
        assert_eq!(outcome.frame[22], ttl - 1);
        assert_eq!(packet::checksum(&outcome.frame[14..34]), 0, "TTL {ttl}");
    }
}

#[test]
fn used_up_hop_limits_and_long_packets_are_left_to_the_stack() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    let long = packet::udp(1, 2, &[0; MTU as usize]);
    for frame in [
        frame_v4(&Ipv4 { ttl: 1, ..Ipv4::new(A.v4, B.v4, 17) }.packet(&udp)),
        frame_v4(&Ipv4 { ttl: 0, ..Ipv4::new(A.v4, B.v4, 17) }.packet(&udp)),
        frame_v6(&Ipv6 { hop_limit: 1, ..Ipv6::new(A.v6, B.v6, 17) }.packet(&udp)),
        frame_v6(&Ipv6 { hop_limit: 0, ..Ipv6::new(A.v6, B.v6, 17) }.packet(&udp)),
        a_to_b_v4(17, &long),
        a_to_b_v6(17, &long),
    ] {
        bench.pod_sends(&frame).expect_stack(Counter::StackIcmpError, &frame);
    }
    assert_eq!(bench.flow_count(), 0, "what is not delivered begins no flow");
}

#[test]
fn packet_as_long_as_the_receivers_mtu_is_delivered() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2)]);
    let fitting_v4 = packet::udp(1, 2, &[0; MTU as usize - 28]);
    let fitting_v6 = packet::udp(1, 2, &[0; MTU as usize - 48]);

    bench.pod_sends(&a_to_b_v4(17, &fitting_v4)).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&a_to_b_v6(17, &fitting_v6)).expect_redirect(Counter::DirectV6);
}

#[test]
fn padding_behind_the_packet_is_no_part_of_it() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2)]);
    let mut padded = a_to_b_v4(17, &packet::udp(1, 2, b""));
    padded.resize(60, 0);

    bench.pod_sends(&padded).expect_redirect(Counter::DirectV4);

    let error = packet::icmp_error(3, &Ipv4::new(B.v4, A.v4, 17).packet(b""));
    let mut padded = a_to_b_v4(1, &error);
    padded.resize(90, 0);
    bench.pod_sends(&padded).expect_stack(Counter::StackUnsupported, &padded);
}
