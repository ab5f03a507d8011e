//! The source check: a pod sends as itself or not at all.

use margay_abi::{Counter, GATEWAY_V4, GATEWAY_V6};
use margay_datapath::{Program, TestContext};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet};

use crate::bench::{
    A, ALL_NODES, B, Bench, ELSEWHERE_V4, ELSEWHERE_V6, HOST_MAC, LINK_LOCAL, TC_ACT_SHOT,
    a_to_b_v4, frame_v4, frame_v6,
};

#[test]
fn another_address_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    for src in [B.v4, ELSEWHERE_V4, GATEWAY_V4, [0; 4], [127, 0, 0, 1], [224, 0, 0, 1]] {
        let frame = frame_v4(&Ipv4::new(src, B.v4, 17).packet(&udp));
        bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
    }
    for src in [B.v6, ELSEWHERE_V6, ALL_NODES] {
        let frame = frame_v6(&Ipv6::new(src, B.v6, 17).packet(&udp));
        bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn another_mac_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    for (ethertype, packet) in [
        (0x0800, Ipv4::new(A.v4, B.v4, 17).packet(&udp)),
        (0x86dd, Ipv6::new(A.v6, B.v6, 17).packet(&udp)),
        (0x0806, packet::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4))),
    ] {
        let frame = ethernet(HOST_MAC, B.mac, ethertype, &packet);
        bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
    }
}

#[test]
fn another_interface_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    let frame = a_to_b_v4(17, &packet::udp(1, 2, b""));

    let run = bench.datapath.test_run(Program::FromPod, &frame, TestContext::default());

    assert_eq!(run.expect("run").action, TC_ACT_SHOT);
}

#[test]
fn check_comes_before_everything_that_the_stack_would_take() {
    let Some(bench) = Bench::new() else { return };
    let header = Ipv4::new(B.v4, ELSEWHERE_V4, 47);
    for header in [
        Ipv4 { fragment: 0x2000, ..header.clone() },
        Ipv4 { fragment: 0x0010, ..header.clone() },
        Ipv4 { options: vec![1; 8], ..header.clone() },
        Ipv4 { dst: [224, 0, 0, 1], ..header.clone() },
        header,
    ] {
        let frame = frame_v4(&header.packet(&[0; 8]));
        bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
    }
    for next_header in [0, 43, 44, 58, 60] {
        let frame = frame_v6(&Ipv6::new(B.v6, ALL_NODES, next_header).packet(&[135; 24]));
        bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
    }
}

#[test]
fn link_scope_addresses_do_not_leave_the_link() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    for src in [LINK_LOCAL, [0; 16]] {
        for dst in [B.v6, ELSEWHERE_V6] {
            let frame = frame_v6(&Ipv6::new(src, dst, 17).packet(&udp));
            bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
        }
        let frame = frame_v6(&Ipv6::new(src, GATEWAY_V6, 17).packet(&udp));
        bench.pod_sends(&frame).expect_stack(Counter::StackControl, &frame);
        let frame = frame_v6(&Ipv6::new(src, ALL_NODES, 17).packet(&udp));
        bench.pod_sends(&frame).expect_stack(Counter::StackMulticast, &frame);
    }
}
