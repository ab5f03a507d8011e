//! Somebody who listens: what every program does with a packet stays the same, and is told.

use margay_abi::event::Hook;
use margay_abi::{Counter, remote_mode};
use margay_datapath::{Monitor, Program, Selection};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};

use crate::bench::{
    A, B, Bench, ELSEWHERE_V4, FAR, HOST_MAC, VXLAN_PORT, a_to_b_v4, a_to_b_v6, frame_v4, stack_v4,
    stack_v6,
};

/// A packet at a program, and the hook that has something to tell of it, the first time and each
/// further time.
type Case = (Program, Vec<u8>, [Option<Hook>; 2]);

#[test]
fn what_programs_do_is_the_same_and_is_told() {
    for mode in [remote_mode::VXLAN, remote_mode::PLAIN] {
        let Some(bench) = Bench::among_nodes(mode) else { return };
        let cases = cases(&bench, mode);
        let run = |(program, frame, _): &Case| bench.run(*program, frame, bench.ifindex);
        let alone: Vec<_> = cases.iter().flat_map(|case| [run(case), run(case)]).collect();
        bench.datapath.flows().clear().expect("forget the flows");
        let mut monitors = [bench.listen(), bench.listen()];

        for (place, case) in cases.iter().enumerate() {
            for (round, told) in case.2.into_iter().enumerate() {
                let outcome = run(case);

                let expected = &alone[2 * place + round];
                assert_eq!(outcome.action, expected.action, "{place}, {round}");
                assert_eq!(outcome.counter, expected.counter, "{place}, {round}");
                // What is to be told of on its way into VXLAN has outer headers of the device, which come
                // later, and of the others one field is random.
                let inside =
                    |frame: &[u8]| frame[frame.len().saturating_sub(case.1.len())..].to_vec();
                assert_eq!(inside(&outcome.frame), inside(&expected.frame), "{place}, {round}");
                for monitor in &mut monitors {
                    let hooks: Vec<_> =
                        monitor.drain().iter().map(|event| event.note.hook).collect();
                    let expected: Vec<_> = told.into_iter().map(|hook| hook as u8).collect();
                    assert_eq!(hooks, expected, "{place}, {round}");
                }
            }
        }
    }
}

fn cases(bench: &Bench, mode: u8) -> Vec<Case> {
    use Program::{FromOverlay, FromPod, FromUplink, ToOverlay, ToPod, ToUplink};
    let syn = packet::tcp(1, 2, tcp_flags::SYN);
    let fin = packet::tcp(3, 4, tcp_flags::FIN | tcp_flags::ACK);
    let middle = packet::tcp(5, 6, tcp_flags::ACK);
    let always = |hook| [Some(hook), Some(hook)];
    let once = |hook| [Some(hook), None];
    let never = [None, None];
    let spoofed = Ipv4::new(ELSEWHERE_V4, B.v4, 17).packet(&packet::udp(1, 2, b""));
    let far_v4 = |payload: &[u8]| frame_v4(&Ipv4::new(A.v4, FAR.v4, 6).packet(payload));
    let arp = packet::arp(1, (A.mac, A.v4), ([0; 6], A.v4));
    let vxlan = packet::udp(1, VXLAN_PORT, b"");
    let from_b_v4 = stack_v4(&Ipv4::new(B.v4, A.v4, 6).packet(&middle));
    let from_b_v6 = stack_v6(&Ipv6::new(B.v6, A.v6, 6).packet(&middle));
    let to_far = ethernet([2; 6], bench.mac, 0x0800, &Ipv4::new(A.v4, FAR.v4, 6).packet(&fin));
    let mut cases = vec![
        (FromPod, a_to_b_v4(6, &syn), once(Hook::FromPod)),
        (FromPod, a_to_b_v6(6, &syn), once(Hook::FromPod)),
        // The stack's, and so `pod_to_node` has it last.
        (FromPod, a_to_b_v4(6, &fin), once(Hook::PodToNode)),
        (FromPod, a_to_b_v4(17, &packet::udp(1, 2, b"data")), never),
        (FromPod, frame_v4(&spoofed), always(Hook::FromPod)),
        (FromPod, ethernet([0xff; 6], A.mac, 0x0806, &arp), always(Hook::FromPod)),
        (FromPod, ethernet(HOST_MAC, A.mac, 0x0800, &[0x4f; 30]), always(Hook::FromPod)),
        (FromPod, far_v4(&syn), once(Hook::PodToNode)),
        (FromPod, far_v4(&middle), never),
        (FromPod, a_to_b_v4(17, &vxlan), always(Hook::PodToNode)),
        (ToPod, from_b_v4, once(Hook::ToPod)),
        (ToPod, from_b_v6, once(Hook::ToPod)),
        (ToUplink, to_far.clone(), once(Hook::ToUplink)),
        (ToOverlay, to_far, never),
    ];
    let (program, hook) = match mode {
        remote_mode::PLAIN => (FromUplink, Hook::FromUplink),
        _ => (FromOverlay, Hook::FromOverlay),
    };
    let syn = packet::tcp(7, 8, tcp_flags::SYN);
    cases.extend([
        (program, bench.far_sends_v4(6, &syn), once(hook)),
        (program, bench.far_sends_v6(6, &syn), once(hook)),
    ]);
    cases
}

impl Bench {
    /// One who listens to everything.
    fn listen(&self) -> Monitor {
        let all = Selection {
            drops: Counter::ALL.to_vec(),
            flows: true,
            pod_links: Vec::new(),
            pod_addresses: Vec::new(),
            addresses: Vec::new(),
            rate: u32::MAX,
        };
        let [root, lock_dir] = self.folders();
        Monitor::start(&root, &lock_dir, &all).expect("listen")
    }
}
