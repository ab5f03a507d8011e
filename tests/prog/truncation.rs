//! Packets cut off anywhere.

use margay_abi::{GATEWAY_V4, GATEWAY_V6};
use margay_datapath::{Program, TestContext};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{
    A, B, Bench, TC_ACT_REDIRECT, TC_ACT_UNSPEC, a_to_b_v4, a_to_b_v6, frame_v6, stack_v4, stack_v6,
};

#[test]
fn no_truncation_of_any_packet_takes_the_fast_path() {
    let Some(bench) = Bench::new() else { return };
    let context = TestContext { ifindex: bench.ifindex, ..TestContext::default() };
    let direct = [(17, 1, 2), (132, 1, 2), (1, 1, 1), (58, 1, 1)];
    for (name, whole) in fast_packets() {
        for len in 0..=whole.len() {
            bench.datapath.flows().clear().expect("clear");
            bench.know_direct(&direct);
            let known = bench.flow_count();
            // The kernel itself refuses what is shorter than an Ethernet header.
            let run = bench.datapath.test_run(Program::FromPod, &whole[..len], context);
            let Ok(run) = run else {
                assert!(len < 54, "{name} of {len} bytes: {run:?}");
                continue;
            };
            let is_fast = run.action == TC_ACT_REDIRECT;
            assert_eq!(is_fast, len == whole.len(), "{name} of {len} bytes: {}", run.action);
            assert!(is_fast || run.frame == whole[..len], "{name} of {len} bytes was changed");
            assert!(is_fast || bench.flow_count() == known, "{name} of {len} bytes began a flow");
        }
    }
}

#[test]
fn no_truncation_of_any_packet_teaches_a_flow() {
    let Some(bench) = Bench::new() else { return };
    for whole in [
        stack_v4(&Ipv4::new(B.v4, A.v4, 6).packet(&packet::tcp(1, 2, tcp_flags::ACK))),
        stack_v4(&Ipv4::new(B.v4, A.v4, 17).packet(&packet::udp(1, 2, b"data"))),
        stack_v6(&Ipv6::new(B.v6, A.v6, 58).packet(&packet::echo(128, 1))),
    ] {
        for len in 14..whole.len() {
            let run =
                bench.datapath.test_run(Program::ToPod, &whole[..len], TestContext::default());
            assert!(run.is_err() || run.is_ok_and(|run| run.action == TC_ACT_UNSPEC));
        }
        assert_eq!(bench.flow_count(), 0);
    }
}

/// Packets that take the fast path as they are.
fn fast_packets() -> [(&'static str, Vec<u8>); 10] {
    let request = packet::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4));
    let message = packet::solicitation(A.v6, GATEWAY_V6, GATEWAY_V6, A.mac);
    let header = Ipv6 { hop_limit: 255, ..Ipv6::new(A.v6, GATEWAY_V6, 58) };
    [
        ("TCP over IPv4", a_to_b_v4(6, &packet::tcp(1, 2, tcp_flags::SYN))),
        ("TCP over IPv6", a_to_b_v6(6, &packet::tcp(1, 2, tcp_flags::SYN))),
        ("UDP over IPv4", a_to_b_v4(17, &packet::udp(1, 2, b"data"))),
        ("UDP over IPv6", a_to_b_v6(17, &packet::udp(1, 2, b"data"))),
        ("SCTP over IPv4", a_to_b_v4(132, &packet::sctp(1, 2))),
        ("SCTP over IPv6", a_to_b_v6(132, &packet::sctp(1, 2))),
        ("echo over IPv4", a_to_b_v4(1, &packet::echo(8, 1))),
        ("echo over IPv6", a_to_b_v6(58, &packet::echo(128, 1))),
        ("ARP", ethernet([255; 6], A.mac, 0x0806, &request)),
        ("solicitation", frame_v6(&header.packet(&message))),
    ]
}
