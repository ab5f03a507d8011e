//! Flow verdicts: which packets begin a flow, which follow it, and who has it.

use margay_abi::{Counter, flow_verdict, pod_flags};
use margay_tests::packet::{self, Ipv4, Ipv6, tcp_flags};

use crate::bench::{
    A, B, B_IFINDEX, Bench, TC_ACT_UNSPEC, a_to_b_v4, a_to_b_v6, key_v4, key_v6, stack_v4, stack_v6,
};

const DIRECT: Option<u8> = Some(flow_verdict::DIRECT);
const VIA_STACK: Option<u8> = Some(flow_verdict::VIA_STACK);

#[test]
fn syn_is_remembered_both_ways() {
    let Some(bench) = Bench::new() else { return };
    let syn = packet::tcp(1000, 80, tcp_flags::SYN);

    bench.pod_sends(&a_to_b_v4(6, &syn)).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&a_to_b_v6(6, &syn)).expect_redirect(Counter::DirectV6);

    assert_eq!(bench.flow_v4(&key_v4(6, 1000, 80)), DIRECT);
    assert_eq!(bench.flow_v4(&key_v4(6, 1000, 80).reversed()), DIRECT);
    assert_eq!(bench.flow_v6(&key_v6(6, 1000, 80)), DIRECT);
    assert_eq!(bench.flow_v6(&key_v6(6, 1000, 80).reversed()), DIRECT);
    assert_eq!(bench.flow_count(), 2, "one entry of each family");
}

#[test]
fn echo_request_begins_a_flow_which_its_reply_follows() {
    let Some(bench) = Bench::new() else { return };
    bench.pod_sends(&a_to_b_v4(1, &packet::echo(8, 7))).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&a_to_b_v4(1, &packet::echo(0, 7))).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&a_to_b_v6(58, &packet::echo(128, 7))).expect_redirect(Counter::DirectV6);
    bench.pod_sends(&a_to_b_v6(58, &packet::echo(129, 7))).expect_redirect(Counter::DirectV6);

    assert_eq!(bench.flow_v4(&key_v4(1, 7, 7)), DIRECT);
    assert_eq!(bench.flow_v6(&key_v6(58, 7, 7)), DIRECT);
    assert_eq!(bench.flow_count(), 2, "one entry of each family");
}

#[test]
fn echo_request_of_a_flow_of_the_stack_stays_with_it() {
    let Some(bench) = Bench::new() else { return };
    bench.stack_sends(&stack_v4(&Ipv4::new(B.v4, A.v4, 1).packet(&packet::echo(8, 7))));

    for icmp_type in [8, 0] {
        let frame = a_to_b_v4(1, &packet::echo(icmp_type, 7));
        bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
    }
    assert_eq!(bench.flow_v4(&key_v4(1, 7, 7)), VIA_STACK);
}

/// What the stack then does with it, and `to_pod` makes of that, is no matter of a single packet:
/// `tests/netns/services.rs`.
#[test]
fn what_may_be_an_answer_as_well_as_a_beginning_is_the_stacks_to_tell() {
    let Some(bench) = Bench::new() else { return };
    for (protocol, payload) in
        [(17, packet::udp(1000, 53, b"")), (132, packet::sctp(1000, 53)), (1, packet::echo(0, 7))]
    {
        let frame = a_to_b_v4(protocol, &payload);
        bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
    }
    for (next_header, payload) in [
        (17, packet::udp(1000, 53, b"")),
        (132, packet::sctp(1000, 53)),
        (58, packet::echo(129, 7)),
    ] {
        let frame = a_to_b_v6(next_header, &payload);
        bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
    }
    assert_eq!(bench.flow_count(), 0, "nothing is known yet");
}

#[test]
fn tcp_whose_beginning_was_not_seen_is_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    for flags in [tcp_flags::ACK, tcp_flags::SYN | tcp_flags::ACK, 0] {
        let v4 = a_to_b_v4(6, &packet::tcp(1, 2, flags));
        bench.pod_sends(&v4).expect_stack(Counter::StackFlow, &v4);
        let v6 = a_to_b_v6(6, &packet::tcp(1, 2, flags));
        bench.pod_sends(&v6).expect_stack(Counter::StackFlow, &v6);
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn connection_is_direct_from_its_syn_on() {
    let Some(bench) = Bench::new() else { return };
    for flags in [tcp_flags::SYN, tcp_flags::ACK, 0] {
        let frame = a_to_b_v4(6, &packet::tcp(1, 2, flags));
        bench.pod_sends(&frame).expect_redirect(Counter::DirectV4);
    }
}

#[test]
fn flow_that_the_stack_was_seen_to_have_stays_there() {
    let Some(bench) = Bench::new() else { return };
    bench.stack_sends(&stack_v4(&Ipv4::new(B.v4, A.v4, 17).packet(&packet::udp(53, 1000, b""))));
    bench.stack_sends(&stack_v6(&Ipv6::new(B.v6, A.v6, 132).packet(&packet::sctp(53, 1000))));

    let v4 = a_to_b_v4(17, &packet::udp(1000, 53, b""));
    bench.pod_sends(&v4).expect_stack(Counter::StackFlow, &v4);
    let v6 = a_to_b_v6(132, &packet::sctp(1000, 53));
    bench.pod_sends(&v6).expect_stack(Counter::StackFlow, &v6);
}

#[test]
fn fin_of_an_unknown_flow_is_lost_once_and_the_flow_becomes_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let v4 = |flags| {
        let tcp = with_checksum(&[A.v4, B.v4].concat(), packet::tcp(1000, 80, flags));
        a_to_b_v4(6, &tcp)
    };
    let v6 = |flags| {
        let tcp = with_checksum(&[A.v6, B.v6].concat(), packet::tcp(1000, 80, flags));
        a_to_b_v6(6, &tcp)
    };
    let fin = tcp_flags::FIN | tcp_flags::ACK;

    let outcome = bench.pod_sends(&v4(fin));
    outcome.expect(TC_ACT_UNSPEC, Counter::StackFlow, &v4(tcp_flags::ACK));
    let outcome = bench.pod_sends(&v6(fin));
    outcome.expect(TC_ACT_UNSPEC, Counter::StackFlow, &v6(tcp_flags::ACK));

    let there = key_v4(6, 1000, 80);
    assert_eq!(bench.flow_v4(&there), VIA_STACK);
    assert_eq!(bench.flow_v4(&there.reversed()), VIA_STACK);
    let there = key_v6(6, 1000, 80);
    assert_eq!(bench.flow_v6(&there), VIA_STACK);
    assert_eq!(bench.flow_v6(&there.reversed()), VIA_STACK);
    bench.pod_sends(&v4(fin)).expect_stack(Counter::StackFlow, &v4(fin));
    bench.pod_sends(&v6(fin)).expect_stack(Counter::StackFlow, &v6(fin));
}

#[test]
fn fin_of_a_direct_connection_is_delivered() {
    let Some(bench) = Bench::new() else { return };
    for flags in [tcp_flags::SYN, tcp_flags::FIN | tcp_flags::ACK] {
        let outcome = bench.pod_sends(&a_to_b_v4(6, &packet::tcp(1, 2, flags)));
        outcome.expect_redirect(Counter::DirectV4);
        assert_eq!(outcome.frame[47], flags);
    }
}

#[test]
fn reset_of_an_unknown_flow_is_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    for flags in [tcp_flags::RST, tcp_flags::RST | tcp_flags::FIN | tcp_flags::ACK] {
        let frame = a_to_b_v4(6, &packet::tcp(1, 2, flags));
        bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}

/// Fills in the checksum of a TCP segment between two addresses of either family.
fn with_checksum(addresses: &[u8], mut segment: Vec<u8>) -> Vec<u8> {
    let pseudo_tail = [0, 6, 0, segment.len() as u8];
    let checksum = packet::checksum(&[addresses, &pseudo_tail, &segment].concat());
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

#[test]
fn syn_of_a_flow_of_the_stack_stays_with_it() {
    let Some(bench) = Bench::new() else { return };
    let there = key_v4(6, 1000, 80);
    bench.stack_sends(&stack_v4(&Ipv4::new(B.v4, A.v4, 6).packet(&packet::tcp(80, 1000, 0x12))));

    for flags in [tcp_flags::ACK, tcp_flags::SYN, tcp_flags::ACK] {
        let frame = a_to_b_v4(6, &packet::tcp(1000, 80, flags));
        bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
    }

    assert_eq!(bench.flow_v4(&there), VIA_STACK);
    assert_eq!(bench.flow_v4(&there.reversed()), VIA_STACK);
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    let Some(bench) = Bench::new() else { return };
    // A's answer to a packet of B that A cannot take.
    let quoted_v4 = Ipv4::new(B.v4, A.v4, 17).packet(&packet::udp(53, 1000, b""));
    let quoted_v6 = Ipv6::new(B.v6, A.v6, 17).packet(&packet::udp(53, 1000, b""));
    let error_v4 = a_to_b_v4(1, &packet::icmp_error(3, &quoted_v4));
    let error_v6 = a_to_b_v6(58, &packet::icmp_error(1, &quoted_v6));

    bench.pod_sends(&error_v4).expect_stack(Counter::StackFlow, &error_v4);
    bench.pod_sends(&error_v6).expect_stack(Counter::StackFlow, &error_v6);
    assert_eq!(bench.flow_count(), 0, "an error begins nothing");

    bench.stack_sends(&stack_v4(&quoted_v4));
    bench.stack_sends(&stack_v6(&quoted_v6));
    bench.pod_sends(&error_v4).expect_stack(Counter::StackFlow, &error_v4);
    bench.pod_sends(&error_v6).expect_stack(Counter::StackFlow, &error_v6);

    bench.know_direct(&[(17, 1000, 53)]);
    bench.pod_sends(&error_v4).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&error_v6).expect_redirect(Counter::DirectV6);
}

#[test]
fn icmp_errors_about_an_echo_follow_the_echo() {
    let Some(bench) = Bench::new() else { return };
    let echo = Ipv4::new(B.v4, A.v4, 1).packet(&packet::echo(8, 77));
    let error = a_to_b_v4(1, &packet::icmp_error(11, &echo));
    bench.pod_sends(&error).expect_stack(Counter::StackFlow, &error);

    bench.know_direct(&[(1, 77, 77)]);

    bench.pod_sends(&error).expect_redirect(Counter::DirectV4);
}

#[test]
fn icmp_errors_with_an_unreadable_quote_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(53, 1000, b"");
    bench.know_direct(&[(17, 1000, 53)]);
    let whole = Ipv4::new(B.v4, A.v4, 17);
    for quoted in [
        Ipv4 { options: vec![1; 4], ..whole.clone() }.packet(&udp),
        Ipv4 { fragment: 0x2000, ..whole.clone() }.packet(&udp),
        Ipv4 { protocol: 47, ..whole.clone() }.packet(&udp),
        whole.packet(&udp)[..27].to_vec(),
        Vec::new(),
    ] {
        let error = a_to_b_v4(1, &packet::icmp_error(3, &quoted));
        bench.pod_sends(&error).expect_stack(Counter::StackUnsupported, &error);
    }
    let quoted =
        Ipv6::new(B.v6, A.v6, 44).packet(&[17, 0, 0, 1, 0, 0, 0, 9, 0, 53, 0, 9, 0, 8, 0, 0]);
    let error = a_to_b_v6(58, &packet::icmp_error(1, &quoted));
    bench.pod_sends(&error).expect_stack(Counter::StackUnsupported, &error);
}

#[test]
fn no_packet_of_a_shaped_pod_is_delivered_directly_even_if_its_flow_was() {
    let Some(bench) = Bench::new() else { return };
    let syn = packet::tcp(1, 2, tcp_flags::SYN);
    let ack = packet::tcp(1, 2, tcp_flags::ACK);
    bench.pod_sends(&a_to_b_v4(6, &syn)).expect_redirect(Counter::DirectV4);
    bench.pod_sends(&a_to_b_v6(6, &syn)).expect_redirect(Counter::DirectV6);

    for (flags_a, flags_b) in [(pod_flags::SHAPED, 0), (0, pod_flags::SHAPED)] {
        bench.put_pod(&A, bench.ifindex, flags_a);
        bench.put_pod(&B, B_IFINDEX, flags_b);
        for frame in [a_to_b_v4(6, &ack), a_to_b_v4(6, &syn), a_to_b_v6(6, &ack)] {
            bench.pod_sends(&frame).expect_stack(Counter::StackFlow, &frame);
        }
    }

    bench.put_pod(&A, bench.ifindex, 0);
    bench.put_pod(&B, B_IFINDEX, 0);
    bench.pod_sends(&a_to_b_v4(6, &ack)).expect_redirect(Counter::DirectV4);
}
