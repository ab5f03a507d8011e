//! What the steps of an ADD cost. Asserts only what a slow machine keeps as well; prints the rest
//! (`cargo test -p margay-datapath timing -- --nocapture`).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use margay_abi::PodInfo;

use super::maps::frame;
use super::monitor::everything;
use super::node::{create_veth, on_a_node, with_netlink};
use crate::{AttachMode, Datapath, Monitor, Program, Selection, TestContext, probe};

const RUNS: u32 = 50;

#[test]
fn opening_pins_costs_far_less_than_loading() {
    on_a_node(|node| {
        let started = Instant::now();
        drop(node.open_or_load());
        let loading = started.elapsed();
        let pod = PodInfo { ifindex: 7, mtu: 1500, flags: 0, pod_mac: [2; 6], host_mac: [0xee; 6] };

        let opening = median(|| {
            let datapath = Datapath::open(&node.root()).expect("open").expect("pins");
            datapath.pods().insert(IpAddr::from([10, 0, 0, 1]), &pod).expect("insert");
        });
        let probing = median(|| probe(&node.root()).expect("probe"));

        println!("load {loading:?}, open and insert {opening:?}, probe {probing:?}");
        assert!(opening * 5 < loading, "open {opening:?}, load {loading:?}");
    });
}

#[test]
fn a_packet_that_is_dropped_is_timed_with_somebody_who_listens_and_without() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let repeat = |repeat| {
            let context = TestContext { repeat, ..TestContext::default() };
            let run = datapath.test_run(Program::FromPod, &frame(), context);
            run.expect("run").duration
        };
        let listen = |rate| {
            let selection = Selection { rate, ..everything() };
            let started = Instant::now();
            let monitor = Monitor::start(&node.root(), &node.options.lock_dir, &selection);
            (monitor.expect("listen"), started.elapsed())
        };
        repeat(1000);
        let alone = repeat(10_000);
        // As many as the ring has room for.
        let (monitor, start) = listen(u32::MAX);
        let told = repeat(3000);
        drop(monitor);
        let (_monitor, _) = listen(1);
        let kept_back = repeat(10_000);

        println!("drop {alone:?}, told {told:?}, kept back {kept_back:?}, start {start:?}");
    });
}

#[test]
fn attaching_by_clsact_is_timed_beside_tcx() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            for mode in [AttachMode::Clsact, AttachMode::Tcx] {
                let ifindex = create_veth(netlink).await;
                let started = Instant::now();
                datapath.attach(netlink, ifindex, mode).await.expect("attach");
                let attaching = started.elapsed();
                let started = Instant::now();
                datapath.inspect(netlink, ifindex, mode).await.expect("inspect");
                println!("{mode:?}: attach {attaching:?}, inspect {:?}", started.elapsed());
                super::node::delete_veth(netlink, ifindex).await;
            }
        });
    });
}

fn median(mut step: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            step();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}
