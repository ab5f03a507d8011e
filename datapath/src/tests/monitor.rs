//! Who listens, and what is left of those who did.

use std::net::Ipv4Addr;

use margay_abi::event::tail_call;
use margay_abi::{Counter, Settings, map_name};

use super::maps::frame;
use super::node::{Node, on_a_node};
use crate::maps::RawTable;
use crate::pins::Pins;
use crate::{Datapath, Missed, Monitor, MonitorError, Program, Selection, TestContext};

#[test]
fn a_drop_is_told_to_each_who_listens_and_the_packet_is_dropped_as_ever() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitors = [listen(node, &everything()), listen(node, &everything())];

        assert_eq!(send(&datapath), DROPPED);

        for monitor in &mut monitors {
            let events = monitor.drain();
            let [event] = &events[..] else { panic!("one event: {events:?}") };
            assert_eq!(event.note.dropped, Counter::DropSpoofedSource as u8);
            assert_eq!(event.src, Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
            assert_eq!(event.dst, Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
            assert_eq!((event.src_port, event.dst_port), ([0x10, 0], [0x10, 1]));
            assert_eq!((event.protocol, event.mac, event.bytes), (17, [2; 6], 60));
            assert!(monitor.drain().is_empty());
        }
    });
}

#[test]
fn what_one_who_listens_did_not_ask_for_is_not_told() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let no_drops = Selection { drops: vec![Counter::DropArpIgnored], ..everything() };
        let other = ["192.0.2.0/24".parse().expect("network")].to_vec();
        let others = Selection { addresses: other, ..everything() };
        let of_a_pod = Selection { pod_links: vec![4711], ..everything() };
        let own = ["10.0.0.0/24".parse().expect("network")].to_vec();
        let address = Selection { addresses: own, ..everything() };
        let mut monitors =
            [no_drops, others, of_a_pod, address].map(|selection| listen(node, &selection));

        send(&datapath);

        let told = monitors.each_mut().map(|monitor| monitor.drain().len());
        assert_eq!(told, [0, 0, 0, 1]);
    });
}

#[test]
fn beyond_the_rate_events_are_counted_and_not_told() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitor = listen(node, &Selection { rate: 3, ..everything() });
        let context = TestContext { repeat: 5000, ..TestContext::default() };

        datapath.test_run(Program::FromPod, &frame(), context).expect("run");

        let told = monitor.drain().len() as u64;
        let missed = monitor.renew().expect("renew");
        assert!(told < 5000, "{told}");
        assert_eq!((told + missed.suppressed, missed.lost), (5000, 0));
        assert_eq!(monitor.renew().expect("renew").suppressed, 0, "told once");
    });
}

#[test]
fn what_a_full_ring_has_no_room_for_is_counted_as_lost() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitor = listen(node, &Selection { rate: u32::MAX, ..everything() });
        let context = TestContext { repeat: 50_000, ..TestContext::default() };

        datapath.test_run(Program::FromPod, &frame(), context).expect("run");

        let told = monitor.drain().len() as u64;
        assert!(told > 1000, "{told}");
        monitor.renew().expect("renew");
        assert_eq!(monitor.renew().expect("renew").lost, 50_000 - told);
        assert_eq!(monitor.renew().expect("renew").lost, 0, "told once");
    });
}

#[test]
fn what_was_missed_last_is_told_at_the_end() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitor = listen(node, &Selection { rate: 40_000, ..everything() });
        let context = TestContext { repeat: 50_000, ..TestContext::default() };
        datapath.test_run(Program::FromPod, &frame(), context).expect("run");

        let missed = monitor.stop().expect("stop");

        let told = monitor.drain().len() as u64;
        assert!(told > 1000 && missed.lost > 1000, "{told}, {missed:?}");
        assert_eq!(told + missed.suppressed + missed.lost, 50_000);
        assert_eq!(taken(node), []);
    });
}

#[test]
fn what_is_in_the_ring_is_not_missed() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitor = listen(node, &everything());
        for _ in 0..3 {
            send(&datapath);

            let missed = monitor.renew().expect("renew");

            assert_eq!(missed, Missed::default());
            assert_eq!(monitor.drain().len(), 1);
        }
    });
}

#[test]
fn one_who_was_forgotten_is_told_so_once() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut monitor = listen(node, &everything());
        datapath.set_settings(&Settings { listened_until_ns: 1 }).expect("let the deadline pass");
        send(&datapath);

        let lapsed = [(); 2].map(|()| monitor.renew().expect("renew").lapsed);

        assert!(monitor.drain().is_empty());
        assert_eq!(lapsed, [true, false]);
        send(&datapath);
        assert_eq!(monitor.drain().len(), 1);
    });
}

#[test]
fn the_last_who_leaves_switches_it_off_and_leaves_nothing() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let first = listen(node, &everything());
        let second = listen(node, &everything());
        assert_eq!(taken(node), [1, 2]);

        drop(first);
        assert_eq!(taken(node), [2]);
        assert_ne!(datapath.settings().expect("read"), Settings::default());

        drop(second);
        assert_eq!(taken(node), []);
        assert_eq!(datapath.settings().expect("read"), Settings::default());
    });
}

#[test]
fn one_who_is_killed_is_told_nothing_after_the_deadline_and_is_replaced() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let mut killed = listen(node, &everything());
        killed.die();
        assert_eq!(taken(node), [1], "as a killed process leaves it");
        let past = Settings { listened_until_ns: 1 };
        datapath.set_settings(&past).expect("let the deadline pass");

        assert_eq!(send(&datapath), DROPPED);

        assert!(killed.drain().is_empty());
        assert_eq!(datapath.settings().expect("read"), Settings::default(), "switched off");
        let mut next = listen(node, &everything());
        assert_eq!(taken(node), [1]);
        send(&datapath);
        assert_eq!((killed.drain().len(), next.drain().len()), (0, 1));
    });
}

#[test]
fn one_who_goes_on_takes_away_what_a_killed_one_has_left() {
    on_a_node(|node| {
        let _datapath = node.open_or_load();
        let mut killed = listen(node, &everything());
        let mut other = listen(node, &everything());
        killed.die();

        other.renew().expect("renew");

        assert_eq!(taken(node), [2]);
    });
}

#[test]
fn there_is_an_end_to_how_many_can_listen_and_a_place_is_free_again() {
    on_a_node(|node| {
        let _datapath = node.open_or_load();
        let mut monitors: Vec<_> =
            tail_call::REPORTERS.map(|_| listen(node, &everything())).collect();

        let refused = Monitor::start(&node.root(), &node.options.lock_dir, &everything());
        assert!(matches!(refused, Err(MonitorError::Full)), "{refused:?}");

        monitors.remove(3);
        listen(node, &everything());
    });
}

#[test]
fn one_whose_place_is_taken_from_another_lock_dir_says_so_and_leaves_the_other_alone() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let elsewhere = node.options.lock_dir.with_file_name("elsewhere");
        let mut first = listen(node, &everything());
        let mut other = Monitor::start(&node.root(), &elsewhere, &everything()).expect("listen");

        let ended = first.renew();
        drop(first);

        assert!(matches!(ended, Err(MonitorError::Displaced)), "{ended:?}");
        other.renew().expect("renew");
        send(&datapath);
        assert_eq!(other.drain().len(), 1);
    });
}

#[test]
fn when_the_dataplane_is_unloaded_it_ends() {
    on_a_node(|node| {
        let _datapath = node.open_or_load();
        let mut monitor = listen(node, &everything());
        Datapath::remove_all_pins(&node.root(), &node.options).expect("unload");

        let ended = monitor.renew();

        assert!(matches!(ended, Err(MonitorError::Unloaded)), "{ended:?}");
    });
}

/// `TC_ACT_SHOT`.
const DROPPED: i32 = 2;

pub(super) fn everything() -> Selection {
    Selection {
        drops: Counter::ALL.to_vec(),
        flows: true,
        pod_links: Vec::new(),
        pod_addresses: Vec::new(),
        addresses: Vec::new(),
        rate: 1000,
    }
}

fn listen(node: &Node, selection: &Selection) -> Monitor {
    Monitor::start(&node.root(), &node.options.lock_dir, selection).expect("listen")
}

fn send(datapath: &Datapath) -> i32 {
    let run = datapath.test_run(Program::FromPod, &frame(), TestContext::default());
    run.expect("run").action
}

/// Slots that a reporter is in.
fn taken(node: &Node) -> Vec<u32> {
    let path = Pins::new(&node.root(), "").map(map_name::TAIL_CALLS);
    let slots = RawTable::open(map_name::TAIL_CALLS, &path).expect("open").expect("pinned");
    let is_taken = |slot: &u32| slots.get(&slot.to_ne_bytes()).expect("read").is_some();
    tail_call::REPORTERS.filter(is_taken).collect()
}
