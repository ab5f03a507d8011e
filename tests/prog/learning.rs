//! `to_pod`: what it learns from the packets that the stack sends.

use margay_abi::{Counter, flow_verdict};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{
    A, B, Bench, ELSEWHERE_V4, ELSEWHERE_V6, HOST_MAC, a_to_b_v4, key_v4, key_v6, stack_v4,
    stack_v6,
};

const VIA_STACK: Option<u8> = Some(flow_verdict::VIA_STACK);

#[test]
fn both_directions_between_pods_stay_with_the_stack() {
    let Some(bench) = Bench::new() else { return };
    for (protocol, payload) in [
        (6, packet::tcp(80, 1000, tcp_flags::ACK)),
        (17, packet::udp(80, 1000, b"")),
        (132, packet::sctp(80, 1000)),
    ] {
        let frame = stack_v4(&Ipv4::new(B.v4, A.v4, protocol).packet(&payload));
        bench.stack_sends(&frame).expect_stack(Counter::ToPod, &frame);
        let frame = stack_v6(&Ipv6::new(B.v6, A.v6, protocol).packet(&payload));
        bench.stack_sends(&frame).expect_stack(Counter::ToPod, &frame);

        let (v4, v6) = (key_v4(protocol, 1000, 80), key_v6(protocol, 1000, 80));
        assert_eq!(bench.flow_v4(&v4), VIA_STACK);
        assert_eq!(bench.flow_v4(&v4.reversed()), VIA_STACK);
        assert_eq!(bench.flow_v6(&v6), VIA_STACK);
        assert_eq!(bench.flow_v6(&v6.reversed()), VIA_STACK);
    }
    bench.stack_sends(&stack_v4(&Ipv4::new(B.v4, A.v4, 1).packet(&packet::echo(0, 9))));
    assert_eq!(bench.flow_v4(&key_v4(1, 9, 9)), VIA_STACK);
    bench.stack_sends(&stack_v6(&Ipv6::new(B.v6, A.v6, 58).packet(&packet::echo(129, 9))));
    assert_eq!(bench.flow_v6(&key_v6(58, 9, 9)), VIA_STACK);
}

#[test]
fn direct_flow_that_the_stack_gets_becomes_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    bench.know_direct(&[(17, 1, 2)]);

    bench.stack_sends(&stack_v4(&Ipv4::new(B.v4, A.v4, 17).packet(&packet::udp(2, 1, b""))));

    let frame = a_to_b_v4(17, &packet::udp(1, 2, b""));
    bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
}

#[test]
fn first_fragments_teach_and_later_ones_do_not() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(2, 1, b"data");
    for (fragment, learnt) in [(0x0001, 0), (0x2001, 0), (0x2000, 1)] {
        bench.datapath.flows().clear().expect("clear");
        let header = Ipv4 { fragment, ..Ipv4::new(B.v4, A.v4, 17) };
        bench.stack_sends(&stack_v4(&header.packet(&udp)));
        assert_eq!(bench.flow_count(), learnt, "IPv4 {fragment:#x}");

        bench.datapath.flows().clear().expect("clear");
        let [high, low] = (((fragment & 0x1fff) << 3) | 1).to_be_bytes();
        let payload = [&[17, 0, high, low, 0, 0, 0, 9], &udp[..]].concat();
        bench.stack_sends(&stack_v6(&Ipv6::new(B.v6, A.v6, 44).packet(&payload)));
        assert_eq!(bench.flow_count(), learnt, "IPv6 {fragment:#x}");
    }
}

#[test]
fn options_of_any_length_do_not_hide_the_ports() {
    let Some(bench) = Bench::new() else { return };
    for words in 1..=10 {
        bench.datapath.flows().clear().expect("clear");
        let header = Ipv4 { options: vec![1; words * 4], ..Ipv4::new(B.v4, A.v4, 17) };
        bench.stack_sends(&stack_v4(&header.packet(&packet::udp(2, 1, b""))));
        assert_eq!(bench.flow_v4(&key_v4(17, 1, 2)), VIA_STACK, "{words} words");
    }
}

#[test]
fn extension_headers_do_not_hide_the_ports() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(2, 1, b"");
    for next_header in [0, 43, 60] {
        for more_units in 0..8 {
            bench.datapath.flows().clear().expect("clear");
            let padding = vec![0; 6 + more_units * 8];
            let extensions = [&[60, more_units as u8], &padding[..], &[17, 0, 0, 0, 0, 0, 0, 0]];
            let payload = [&extensions.concat(), &udp[..]].concat();
            bench.stack_sends(&stack_v6(&Ipv6::new(B.v6, A.v6, next_header).packet(&payload)));
            assert_eq!(bench.flow_v6(&key_v6(17, 1, 2)), VIA_STACK, "{next_header}, {more_units}");
        }
    }
}

#[test]
fn everything_else_passes_and_teaches_nothing() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(2, 1, b"");
    let quoted = Ipv4::new(A.v4, B.v4, 17).packet(&packet::udp(1, 2, b""));
    for frame in [
        stack_v4(&Ipv4::new(ELSEWHERE_V4, A.v4, 17).packet(&udp)),
        stack_v6(&Ipv6::new(ELSEWHERE_V6, A.v6, 17).packet(&udp)),
        stack_v4(&Ipv4::new(B.v4, A.v4, 1).packet(&packet::icmp_error(3, &quoted))),
        stack_v4(&Ipv4::new(B.v4, A.v4, 47).packet(&[0; 8])),
        stack_v6(&Ipv6::new(B.v6, A.v6, 60).packet(&[0; 8])),
        ethernet(A.mac, HOST_MAC, 0x8100, &[0; 60]),
        ethernet(A.mac, HOST_MAC, 0x0806, &[0; 28]),
        ethernet(A.mac, HOST_MAC, 0x0800, &[0xff; 20]),
    ] {
        bench.stack_sends(&frame).expect_stack(Counter::ToPod, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}
