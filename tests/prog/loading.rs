//! The object as a whole: it loads, and its maps are the ABI's.

use margay_abi::Counter;

use crate::bench::Bench;

#[test]
fn every_program_loads_and_counts_nothing_by_itself() {
    let Some(bench) = Bench::new() else { return };

    let programs = bench.datapath.program_ids();

    assert!(programs.from_pod.is_some() && programs.to_pod.is_some());
    let stats = bench.datapath.stats().expect("stats");
    assert_eq!(stats.len(), Counter::ALL.len());
    assert!(stats.iter().all(|(_, traffic)| traffic.packets == 0));
}
