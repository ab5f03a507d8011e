//! ARP replies and neighbour advertisements, and what is not answered.

use margay_abi::{Counter, GATEWAY_V4, GATEWAY_V6, pod_flags};
use margay_tests::packet::{self, Ipv6, Mac, ethernet};

use crate::bench::{A, B, Bench, ELSEWHERE_V4, ELSEWHERE_V6, HOST_MAC, LINK_LOCAL, frame_v6};

const BROADCAST: Mac = [255; 6];
/// The gateway's solicited-node group, where a host's first solicitation goes.
const GATEWAY_GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xee, 0xee, 0xee];

#[test]
fn request_for_the_gateway_is_answered_with_the_host_veths_mac() {
    let Some(bench) = Bench::new() else { return };
    for dst in [BROADCAST, HOST_MAC] {
        let request = packet::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4));

        let outcome = bench.pod_sends(&ethernet(dst, A.mac, 0x0806, &request));

        outcome.expect_redirect(Counter::ArpAnswered);
        let reply = packet::arp(2, (HOST_MAC, GATEWAY_V4), (A.mac, A.v4));
        assert_eq!(outcome.frame, ethernet(A.mac, HOST_MAC, 0x0806, &reply));
    }
}

#[test]
fn other_requests_are_ignored() {
    let Some(bench) = Bench::new() else { return };
    for (sender, target, what) in [
        (A.v4, ELSEWHERE_V4, "for a stranger"),
        (A.v4, B.v4, "for another pod"),
        (A.v4, A.v4, "gratuitous"),
        ([0; 4], A.v4, "probe for its own address"),
        ([0; 4], GATEWAY_V4, "probe for the gateway"),
    ] {
        let frame = arp_frame(&packet::arp(1, (A.mac, sender), ([0; 6], target)));
        let outcome = bench.pod_sends(&frame);
        assert_eq!(outcome.counter, Some(Counter::DropArpIgnored), "{what}");
    }
}

#[test]
fn any_address_is_answered_where_that_is_configured_but_never_the_pods_own() {
    let Some(bench) = Bench::with_flags(pod_flags::ANSWER_ANY) else { return };
    let request = |target| arp_frame(&packet::arp(1, (A.mac, A.v4), ([0; 6], target)));

    bench.pod_sends(&request(ELSEWHERE_V4)).expect_redirect(Counter::ArpAnswered);
    let gratuitous = request(A.v4);
    bench.pod_sends(&gratuitous).expect_drop(Counter::DropArpIgnored, &gratuitous);

    let solicitation = |target| solicitation_frame(A.v6, target, target);
    bench.pod_sends(&solicitation(ELSEWHERE_V6)).expect_redirect(Counter::NdpAnswered);
    for target in [A.v6, GATEWAY_GROUP] {
        let frame = solicitation_frame(A.v6, GATEWAY_V6, target);
        bench.pod_sends(&frame).expect_stack(Counter::StackControl, &frame);
    }
}

#[test]
fn arp_of_another_sender_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    for operation in [1, 2] {
        for sender in [(A.mac, B.v4), (B.mac, A.v4), (A.mac, GATEWAY_V4)] {
            let frame = arp_frame(&packet::arp(operation, sender, ([0; 6], GATEWAY_V4)));
            bench.pod_sends(&frame).expect_drop(Counter::DropSpoofedSource, &frame);
        }
    }
}

#[test]
fn arp_reply_of_the_pod_is_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let frame = arp_frame(&packet::arp(2, (A.mac, A.v4), (HOST_MAC, ELSEWHERE_V4)));

    bench.pod_sends(&frame).expect_stack(Counter::StackControl, &frame);
}

#[test]
fn arp_of_another_link_or_protocol_is_dropped() {
    let Some(bench) = Bench::new() else { return };
    let good = arp_frame(&packet::arp(1, (A.mac, A.v4), ([0; 6], GATEWAY_V4)));
    for (offset, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
        let mut frame = good.clone();
        frame[offset] = value;
        bench.pod_sends(&frame).expect_drop(Counter::DropMalformed, &frame);
    }
}

#[test]
fn solicitation_for_the_gateway_is_answered_with_a_valid_advertisement() {
    let Some(bench) = Bench::new() else { return };
    for src in [A.v6, LINK_LOCAL] {
        for dst in [GATEWAY_GROUP, GATEWAY_V6] {
            let outcome = bench.pod_sends(&solicitation_frame(src, dst, GATEWAY_V6));

            outcome.expect_redirect(Counter::NdpAnswered);
            assert_eq!(outcome.frame.len(), 86);
            assert_eq!(outcome.frame[..14], ethernet(A.mac, HOST_MAC, 0x86dd, b""));
            let header = Ipv6 { hop_limit: 255, ..Ipv6::new(GATEWAY_V6, src, 58) };
            let message = &outcome.frame[54..];
            assert_eq!(outcome.frame[14..], header.packet(message), "IPv6 header");
            assert_eq!(packet::icmpv6_checksum(GATEWAY_V6, src, message), 0, "checksum");
            assert_eq!(message[..2], [136, 0], "neighbour advertisement");
            assert_eq!(message[4..8], [0xe0, 0, 0, 0], "router, solicited, override");
            assert_eq!(message[8..24], GATEWAY_V6, "target");
            assert_eq!(message[24..26], [2, 1], "target link-layer address");
            assert_eq!(message[26..], HOST_MAC);
        }
    }
}

#[test]
fn other_solicitations_are_the_stacks() {
    let Some(bench) = Bench::new() else { return };
    let good = solicitation_frame(A.v6, GATEWAY_GROUP, GATEWAY_V6);
    for (offset, value, what) in [
        (21, 254, "hop limit"),
        (55, 1, "code"),
        (62, 0xfd, "target"),
        (78, 2, "option type"),
        (79, 2, "option length"),
        (85, 99, "source link-layer address of another"),
    ] {
        let mut frame = good.clone();
        frame[offset] = value;
        let outcome = bench.pod_sends(&frame);
        assert_eq!(outcome.counter, Some(Counter::StackControl), "{what}");
        assert_eq!(outcome.frame, frame, "{what}");
    }
    let message = &packet::solicitation(A.v6, GATEWAY_GROUP, GATEWAY_V6, A.mac)[..24];
    let header = Ipv6 { hop_limit: 255, ..Ipv6::new(A.v6, GATEWAY_GROUP, 58) };
    let bare = frame_v6(&header.packet(message));
    bench.pod_sends(&bare).expect_stack(Counter::StackControl, &bare);
    let duplicate_detection = solicitation_frame([0; 16], GATEWAY_GROUP, GATEWAY_V6);
    bench.pod_sends(&duplicate_detection).expect_stack(Counter::StackControl, &duplicate_detection);
}

fn arp_frame(arp: &[u8]) -> Vec<u8> {
    ethernet(BROADCAST, A.mac, 0x0806, arp)
}

fn solicitation_frame(src: [u8; 16], dst: [u8; 16], target: [u8; 16]) -> Vec<u8> {
    let header = Ipv6 { hop_limit: 255, ..Ipv6::new(src, dst, 58) };
    frame_v6(&header.packet(&packet::solicitation(src, dst, target, A.mac)))
}
