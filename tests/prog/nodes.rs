//! A node among others: what `from_pod` goes on with in `pod_to_node`, and the hooks of the interfaces
//! that lead to other nodes.

use margay_abi::{Counter, flow_verdict, remote_mode};
use margay_datapath::Program;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{
    A, Bench, ELSEWHERE_V4, FAR, HOST_MAC, NODE_MAC, NODE_MTU, OVERLAY_MAC, TC_ACT_UNSPEC,
    VXLAN_PORT, frame_v4, frame_v6,
};

const MODES: [u8; 2] = [remote_mode::VXLAN, remote_mode::PLAIN];

#[test]
fn connection_to_another_node_is_sent_there() {
    for mode in MODES {
        let Some(bench) = Bench::among_nodes(mode) else { return };
        for flags in [tcp_flags::SYN, tcp_flags::ACK] {
            let tcp = packet::tcp(1, 2, flags);

            let v4 = bench.pod_sends(&frame_v4(&Ipv4::new(A.v4, FAR.v4, 6).packet(&tcp)));
            let v6 = bench.pod_sends(&frame_v6(&Ipv6::new(A.v6, FAR.v6, 6).packet(&tcp)));

            v4.expect_redirect(Counter::ToNodeV4);
            v6.expect_redirect(Counter::ToNodeV6);
            let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, FAR.v4, 6) };
            let v4 = inside(mode, &v4.frame);
            assert_eq!(v4[14..], header.packet(&tcp));
            let header = Ipv6 { hop_limit: 63, ..Ipv6::new(A.v6, FAR.v6, 6) };
            let v6 = inside(mode, &v6.frame);
            assert_eq!(v6[14..], header.packet(&tcp));
            if mode == remote_mode::VXLAN {
                assert_eq!(v4[..14], ethernet(NODE_MAC, OVERLAY_MAC, 0x0800, b""));
                assert_eq!(v6[..14], ethernet(NODE_MAC, OVERLAY_MAC, 0x86dd, b""));
            }
        }
        assert_eq!(bench.flow_count(), 2);
    }
}

#[test]
fn what_does_not_fit_the_way_to_the_node_with_its_outer_headers_goes_to_the_device() {
    let Some(bench) = Bench::among_nodes(remote_mode::VXLAN) else { return };
    let route = |mtu: &str| {
        let route = ["ip", "route", "replace", "192.168.77.2", "dev", margay_tests::node::UPLINK];
        margay_tests::node::run(&[&route[..], &["mtu", "lock", mtu]].concat());
    };
    let tcp = [packet::tcp(1, 2, tcp_flags::SYN), vec![0; 1000]].concat();
    let sent = Ipv4::new(A.v4, FAR.v4, 6).packet(&tcp);
    for (mtu, is_wrapped) in [(sent.len() + 50, true), (sent.len() + 49, false)] {
        route(&mtu.to_string());

        let outcome = bench.pod_sends(&frame_v4(&sent));

        outcome.expect_redirect(Counter::ToNodeV4);
        let added = outcome.frame.len() - frame_v4(&sent).len();
        assert_eq!(added, if is_wrapped { 50 } else { 0 }, "{mtu}");
        let inside = &outcome.frame[added..];
        let header = Ipv4 { ttl: 63, ..Ipv4::new(A.v4, FAR.v4, 6) };
        assert_eq!(inside, ethernet(NODE_MAC, OVERLAY_MAC, 0x0800, &header.packet(&tcp)), "{mtu}");
    }
}

#[test]
fn without_the_program_or_the_entry_all_is_as_on_a_lone_node() {
    let Some(bench) = Bench::among_nodes(remote_mode::VXLAN) else { return };
    let syn = frame_v4(&Ipv4::new(A.v4, FAR.v4, 6).packet(&packet::tcp(1, 2, tcp_flags::SYN)));
    let elsewhere = frame_v4(&Ipv4::new(A.v4, ELSEWHERE_V4, 17).packet(&packet::udp(1, 2, b"")));
    bench.pod_sends(&elsewhere).expect_stack(Counter::StackNotLocal, &elsewhere);

    bench.nodes().leave_pods_alone().expect("leave alone");
    bench.pod_sends(&syn).expect_stack(Counter::StackNotLocal, &syn);

    bench.nodes().take_over_from_pods().expect("take over");
    bench.forget_remotes();
    bench.pod_sends(&syn).expect_stack(Counter::StackNotLocal, &syn);
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn what_the_stack_gets_is_counted_as_without_other_nodes() {
    let Some(bench) = Bench::among_nodes(remote_mode::VXLAN) else { return };
    let udp = packet::udp(1, 2, b"");
    let long = packet::udp(1, 2, &[0; NODE_MTU as usize - 27]);
    let to_far = Ipv4::new(A.v4, FAR.v4, 17);
    for (frame, counter) in [
        (frame_v4(&to_far.packet(&udp)), Counter::StackFlow),
        (frame_v4(&to_far.packet(&long)), Counter::StackIcmpError),
        (frame_v4(&Ipv4 { ttl: 1, ..to_far.clone() }.packet(&udp)), Counter::StackIcmpError),
        (frame_v4(&Ipv4 { fragment: 0x2000, ..to_far }.packet(&udp)), Counter::StackUnsupported),
        (frame_v4(&Ipv4::new(A.v4, [224, 0, 0, 1], 17).packet(&udp)), Counter::StackMulticast),
    ] {
        bench.pod_sends(&frame).expect_stack(counter, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn packets_for_the_overlays_port_are_dropped_wherever_they_go() {
    let Some(bench) = Bench::among_nodes(remote_mode::VXLAN) else { return };
    let vxlan = packet::udp(1, VXLAN_PORT, b"vxlan");
    let behind = |first: u8, extensions: usize| {
        let options = [[60, 0, 0, 0, 0, 0, 0, 0].repeat(extensions), vec![17, 0, 0, 1, 0, 0, 0, 0]];
        frame_v6(
            &Ipv6::new(A.v6, FAR.v6, first).packet(&[options.concat(), vxlan.clone()].concat()),
        )
    };
    for dst in [ELSEWHERE_V4, FAR.v4, crate::bench::B.v4] {
        for fragment in [0, 0x2000] {
            for words in 0..=10 {
                let options = vec![1; words * 4];
                let header = Ipv4 { fragment, options, ..Ipv4::new(A.v4, dst, 17) };
                let frame = frame_v4(&header.packet(&vxlan));
                bench.pod_sends(&frame).expect_drop(Counter::DropEncapsulated, &frame);
            }
        }
    }
    let plain = frame_v6(&Ipv6::new(A.v6, FAR.v6, 17).packet(&vxlan));
    for frame in [plain, behind(0, 0), behind(44, 0), behind(43, 1), behind(60, 3), behind(60, 9)] {
        bench.pod_sends(&frame).expect_drop(Counter::DropEncapsulated, &frame);
    }
}

#[test]
fn connection_from_another_node_is_delivered() {
    for (mode, program) in [
        (remote_mode::PLAIN, Program::FromUplink),
        (remote_mode::VXLAN, Program::FromOverlay),
        // The way there may be another one.
        (remote_mode::PLAIN, Program::FromOverlay),
        (remote_mode::VXLAN, Program::FromUplink),
    ] {
        let Some(bench) = Bench::among_nodes(mode) else { return };
        for flags in [tcp_flags::SYN, tcp_flags::ACK] {
            let tcp = packet::tcp(1, 2, flags);
            let v4 = bench.arrive(program, &bench.far_sends_v4(6, &tcp));
            let v6 = bench.arrive(program, &bench.far_sends_v6(6, &tcp));

            v4.expect_redirect(Counter::FromNodeV4);
            v6.expect_redirect(Counter::FromNodeV6);
            let header = Ipv4 { ttl: 63, ..Ipv4::new(FAR.v4, A.v4, 6) };
            assert_eq!(v4.frame, ethernet(A.mac, HOST_MAC, 0x0800, &header.packet(&tcp)));
            let header = Ipv6 { hop_limit: 63, ..Ipv6::new(FAR.v6, A.v6, 6) };
            assert_eq!(v6.frame, ethernet(A.mac, HOST_MAC, 0x86dd, &header.packet(&tcp)));
        }
    }
}

#[test]
fn what_is_for_another_host_or_of_an_unknown_flow_is_the_stacks() {
    let Some(bench) = Bench::among_nodes(remote_mode::PLAIN) else { return };
    let syn = Ipv4::new(FAR.v4, A.v4, 6).packet(&packet::tcp(1, 2, tcp_flags::SYN));
    let stray = ethernet([2, 9, 9, 9, 9, 9], NODE_MAC, 0x0800, &syn);
    bench.arrive(Program::FromUplink, &stray).expect_stack(Counter::StackUnsupported, &stray);
    for payload in [packet::tcp(1, 2, tcp_flags::ACK), packet::tcp(1, 2, 0)] {
        let frame = bench.far_sends_v4(6, &payload);
        bench.arrive(Program::FromUplink, &frame).expect_stack(Counter::StackFlow, &frame);
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn what_an_uplink_sees_of_others_is_neither_touched_nor_counted() {
    let Some(bench) = Bench::among_nodes(remote_mode::PLAIN) else { return };
    let udp = packet::udp(1, 2, b"");
    for (src, dst) in [(ELSEWHERE_V4, A.v4), (FAR.v4, ELSEWHERE_V4), (ELSEWHERE_V4, [192, 0, 2, 2])]
    {
        let frame = ethernet(bench.mac, NODE_MAC, 0x0800, &Ipv4::new(src, dst, 17).packet(&udp));
        for program in [Program::FromUplink, Program::ToUplink, Program::FromOverlay] {
            let outcome = bench.arrive(program, &frame);
            assert_eq!((outcome.action, outcome.counter), (TC_ACT_UNSPEC, None), "{program:?}");
            assert_eq!(outcome.frame, frame);
        }
    }
    assert_eq!(bench.flow_count(), 0);
}

#[test]
fn what_the_stack_sends_to_another_node_is_learnt_on_its_way_out() {
    let Some(bench) = Bench::among_nodes(remote_mode::PLAIN) else { return };
    for program in [Program::ToOverlay, Program::ToUplink] {
        bench.datapath.flows().clear().expect("clear");
        let tcp = packet::tcp(1, 2, tcp_flags::SYN);
        let frame = ethernet(NODE_MAC, bench.mac, 0x0800, &Ipv4::new(A.v4, FAR.v4, 6).packet(&tcp));

        let outcome = bench.arrive(program, &frame);

        assert_eq!((outcome.action, outcome.counter), (TC_ACT_UNSPEC, None));
        assert_eq!(outcome.frame, frame);
        let key = margay_abi::FlowKeyV4 {
            src: A.v4,
            dst: FAR.v4,
            src_port: [0, 1],
            dst_port: [0, 2],
            protocol: 6,
            reserved: [0; 3],
        };
        assert_eq!(bench.flow_v4(&key), Some(flow_verdict::VIA_STACK));
        let answer = bench.far_sends_v4(6, &packet::tcp(2, 1, tcp_flags::ACK));
        bench.arrive(Program::FromUplink, &answer).expect_stack(Counter::StackFlow, &answer);
    }
}

#[test]
fn truncated_packets_from_another_node_are_the_stacks() {
    let Some(bench) = Bench::among_nodes(remote_mode::PLAIN) else { return };
    let whole = bench.far_sends_v4(6, &packet::tcp(1, 2, tcp_flags::SYN));
    for len in 34..whole.len() {
        for program in [Program::FromUplink, Program::FromOverlay, Program::ToUplink] {
            let outcome = bench.arrive(program, &whole[..len]);
            assert_eq!(outcome.action, TC_ACT_UNSPEC, "{len} bytes");
            assert_eq!(outcome.frame, whole[..len]);
        }
    }
}

/// The frame that a pod sent, which in VXLAN is behind the headers from this node to the other.
fn inside(mode: u8, frame: &[u8]) -> &[u8] {
    if mode != remote_mode::VXLAN {
        return frame;
    }
    let (outer, inside) = frame[14..].split_at(50);
    let ip = &outer[..20];
    assert_eq!(packet::checksum(ip), 0);
    assert_eq!(ip[12..], [192, 168, 77, 1, 192, 168, 77, 2]);
    assert_eq!(outer[22..24], VXLAN_PORT.to_be_bytes());
    assert_eq!(outer[28..36], [8, 0, 0, 0, 0, 0, 1, 0]);
    &frame[frame.len() - inside.len() - 14..]
}
