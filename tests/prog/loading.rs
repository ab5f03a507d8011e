//! The object as a whole: it loads, its maps are the ABI's, and its events arrive.

use margay_abi::{Counter, Settings};
use margay_tests::packet::{self, Ipv4};

use crate::bench::{A, B, Bench, ELSEWHERE_V4, frame_v4};

#[test]
fn every_program_loads_and_counts_nothing_by_itself() {
    let Some(bench) = Bench::new() else { return };

    let programs = bench.datapath.program_ids();

    assert!(programs.from_pod.is_some() && programs.to_pod.is_some());
    let stats = bench.datapath.stats().expect("stats");
    assert_eq!(stats.len(), Counter::ALL.len());
    assert!(stats.iter().all(|(_, traffic)| traffic.packets == 0));
}

#[test]
fn drops_are_reported_only_where_that_is_switched_on() {
    let Some(bench) = Bench::new() else { return };
    let mut log = bench.datapath.event_log().expect("event log");
    let spoofed = frame_v4(&Ipv4::new(ELSEWHERE_V4, B.v4, 17).packet(&packet::udp(1, 2, b"")));
    let fine = frame_v4(&Ipv4::new(A.v4, B.v4, 17).packet(&packet::udp(1, 2, b"")));

    bench.pod_sends(&spoofed);
    assert!(log.drain().is_empty());

    bench.datapath.set_settings(&Settings { listened_until_ns: u64::MAX }).expect("settings");
    bench.pod_sends(&fine);
    assert!(log.drain().is_empty(), "nothing was dropped");
    bench.pod_sends(&spoofed).expect_drop(Counter::DropSpoofedSource, &spoofed);

    let [event] = &log.drain()[..] else { panic!("one event") };
    let reason = Counter::DropSpoofedSource as u32;
    let expected = format!(
        "drop {reason} ifindex {} mac 02:00:00:00:00:05: ::ffff:192.0.2.1 > ::ffff:10.244.0.6",
        bench.ifindex
    );
    assert_eq!(event.message, expected);
}
