//! What goes to the stack as it is, and what is dropped as broken.

use margay_abi::Counter;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{
    A, ALL_NODES, B, Bench, ELSEWHERE_V4, ELSEWHERE_V6, HOST_MAC, LINK_LOCAL, TC_ACT_UNSPEC,
    a_to_b_v4, a_to_b_v6, frame_v4, frame_v6,
};

#[test]
fn fragments_options_and_unknown_protocols_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    let header = Ipv4::new(A.v4, B.v4, 17);
    for header in [
        Ipv4 { fragment: 0x2000, ..header.clone() },
        Ipv4 { fragment: 0x2001, ..header.clone() },
        Ipv4 { fragment: 0x0001, ..header.clone() },
        Ipv4 { options: vec![1; 4], ..header.clone() },
        Ipv4 { options: vec![1; 40], ..header.clone() },
        Ipv4 { protocol: 47, ..header },
    ] {
        let frame = frame_v4(&header.packet(&udp));
        bench.pod_sends(&frame).expect_stack(Counter::StackUnsupported, &frame);
    }
    bench.know_direct(&[(17, 1, 2)]);
    let dont_fragment = Ipv4 { fragment: 0x4000, ..Ipv4::new(A.v4, B.v4, 17) };
    bench.pod_sends(&frame_v4(&dont_fragment.packet(&udp))).expect_redirect(Counter::DirectV4);
}

#[test]
fn extension_headers_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    for next_header in [0, 43, 44, 50, 51, 59, 60, 135, 139, 140, 253, 254] {
        let payload = [&[17, 0, 0, 0, 0, 0, 0, 0], &packet::udp(1, 2, b"")[..]].concat();
        let frame = a_to_b_v6(next_header, &payload);
        bench.pod_sends(&frame).expect_stack(Counter::StackUnsupported, &frame);
    }
}

#[test]
fn foreign_frames_are_the_stacks_unread() {
    let Some(bench) = Bench::new() else { return };
    for ethertype in [0x88cc, 0x8847, 0x0026] {
        let frame = ethernet(HOST_MAC, A.mac, ethertype, &a_to_b_v4(17, &[0; 20]));
        let outcome = bench.pod_sends(&frame);
        let stack = (TC_ACT_UNSPEC, Some(Counter::StackUnsupported));
        assert_eq!((outcome.action, outcome.counter), stack);
    }
}

/// The kernel takes a first tag off before the hook; a run of the program by itself does not.
#[test]
fn a_tag_that_is_left_when_the_hook_is_reached_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    for ethertype in [0x8100, 0x88a8] {
        let frame = ethernet(HOST_MAC, A.mac, ethertype, &a_to_b_v4(17, &[0; 20]));
        let outcome = bench.pod_sends(&frame);
        assert_eq!((outcome.action, outcome.counter), (2, Some(Counter::DropSpoofedSource)));
    }
}

#[test]
fn frames_for_another_mac_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let packet = Ipv4::new(A.v4, B.v4, 17).packet(&packet::udp(1, 2, b""));
    let frame = ethernet([2, 9, 9, 9, 9, 9], A.mac, 0x0800, &packet);

    bench.pod_sends(&frame).expect_stack(Counter::StackUnsupported, &frame);
}

#[test]
fn groups_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let udp = packet::udp(1, 2, b"");
    for dst in [[224, 0, 0, 251], [239, 1, 1, 1], [255; 4]] {
        let frame = frame_v4(&Ipv4::new(A.v4, dst, 17).packet(&udp));
        bench.pod_sends(&frame).expect_stack(Counter::StackMulticast, &frame);
    }
    let frame = frame_v6(&Ipv6::new(A.v6, ALL_NODES, 17).packet(&udp));
    bench.pod_sends(&frame).expect_stack(Counter::StackMulticast, &frame);
    let frame = ethernet([255; 6], A.mac, 0x0800, &Ipv4::new(A.v4, B.v4, 17).packet(&udp));
    bench.pod_sends(&frame).expect_stack(Counter::StackMulticast, &frame);
}

#[test]
fn strangers_and_the_pod_itself_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let syn = packet::tcp(1, 2, tcp_flags::SYN);
    for dst in [ELSEWHERE_V4, A.v4] {
        let frame = frame_v4(&Ipv4::new(A.v4, dst, 6).packet(&syn));
        bench.pod_sends(&frame).expect_stack(Counter::StackNotLocal, &frame);
    }
    for dst in [ELSEWHERE_V6, A.v6] {
        let frame = frame_v6(&Ipv6::new(A.v6, dst, 6).packet(&syn));
        bench.pod_sends(&frame).expect_stack(Counter::StackNotLocal, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn link_control_is_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0], &[143, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let frame = frame_v6(&Ipv6::new(LINK_LOCAL, ALL_NODES, 0).packet(&report));
    bench.pod_sends(&frame).expect_stack(Counter::StackControl, &frame);
    for (src, icmp_type) in [(LINK_LOCAL, 133), ([0; 16], 133), (A.v6, 133), (A.v6, 136)] {
        let frame =
            frame_v6(&Ipv6::new(src, ALL_NODES, 58).packet(&[icmp_type, 0, 0, 0, 0, 0, 0, 0]));
        bench.pod_sends(&frame).expect_stack(Counter::StackControl, &frame);
    }
}

#[test]
fn router_messages_of_a_pod_are_dropped() {
    let Some(bench) = Bench::new() else { return };
    for icmp_type in [134, 137] {
        let message = [icmp_type, 0, 0, 0, 0, 0, 0, 0];
        let frame = frame_v6(&Ipv6::new(LINK_LOCAL, ALL_NODES, 58).packet(&message));
        bench.pod_sends(&frame).expect_drop(Counter::DropRouterMessage, &frame);
        for extension in [0, 43, 60] {
            let payload = [[58, 0, 1, 4, 0, 0, 0, 0], message].concat();
            let frame = frame_v6(&Ipv6::new(LINK_LOCAL, ALL_NODES, extension).packet(&payload));
            bench.pod_sends(&frame).expect_drop(Counter::DropRouterMessage, &frame);
        }
    }
}

#[test]
fn contradicting_lengths_are_dropped() {
    let Some(bench) = Bench::new() else { return };
    let v4 = a_to_b_v4(6, &packet::tcp(1, 2, tcp_flags::SYN));
    let v6 = a_to_b_v6(6, &packet::tcp(1, 2, tcp_flags::SYN));
    for (good, offset, value, what) in [
        (&v4, 14, 0x65, "version 6 in an IPv4 frame"),
        (&v4, 14, 0x44, "header shorter than 20 bytes"),
        (&v4, 17, 255, "longer than the frame"),
        (&v4, 17, 0, "no length at all"),
        (&v4, 17, 19, "shorter than its header"),
        (&v4, 17, 39, "TCP header cut off"),
        (&v4, 46, 0x40, "TCP header shorter than 20 bytes"),
        (&v4, 46, 0xf0, "TCP header longer than the packet"),
        (&v6, 14, 0x40, "version 4 in an IPv6 frame"),
        (&v6, 19, 255, "longer than the frame"),
        (&v6, 19, 19, "TCP header cut off"),
        (&v6, 66, 0xf0, "TCP header longer than the packet"),
    ] {
        let mut frame = good.clone();
        frame[offset] = value;
        let outcome = bench.pod_sends(&frame);
        assert_eq!(outcome.counter, Some(Counter::DropMalformed), "{what}");
    }
}
