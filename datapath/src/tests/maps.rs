//! The typed maps.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use margay_abi::{Counter, PodInfo, Settings, map_name};

use super::node::on_a_node;
use crate::{LoadOptions, MapError, Pods, Program, TestContext};

const POD: PodInfo =
    PodInfo { ifindex: 7, mtu: 1500, flags: 0, pod_mac: [2; 6], host_mac: [0xee; 6] };
const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

#[test]
fn a_pod_is_there_from_insert_to_remove() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        for address in [V4, V6] {
            assert_eq!(datapath.pods().get(address).expect("get"), None);
            datapath.pods().insert(address, &POD).expect("insert");
            assert_eq!(datapath.pods().get(address).expect("get"), Some(POD));
        }
        let entries = datapath.pods().entries().expect("walk");
        assert_eq!(entries.into_iter().collect::<Vec<_>>(), [(V4, POD), (V6, POD)]);
        for address in [V4, V6] {
            assert!(datapath.pods().remove(address).expect("remove"));
            assert!(!datapath.pods().remove(address).expect("remove again"));
        }
    });
}

#[test]
fn pods_open_without_any_program() {
    on_a_node(|node| {
        assert!(Pods::open(&node.root()).expect("open nothing").is_none());
        node.open_or_load().pods().insert(V4, &POD).expect("insert");
        fs::remove_dir_all(node.pins().join("progs")).expect("unpin the programs");

        let pods = Pods::open(&node.root()).expect("open").expect("pins");

        assert!(pods.remove(V4).expect("remove"));
    });
}

#[test]
fn a_full_map_is_an_error_that_names_it() {
    on_a_node(|node| {
        let options = LoadOptions { max_pods: 2, ..node.options.clone() };
        let datapath = crate::Datapath::open_or_load(&node.root(), &options).expect("load");
        let insert = |last| datapath.pods().insert(IpAddr::from([10, 0, 0, last]), &POD);
        insert(1).expect("insert");
        insert(2).expect("insert");
        insert(2).expect("write over an entry of a full map");

        let error = insert(3).expect_err("insert into a full map");

        match error {
            MapError::Full { map: map_name::PODS_V4, max_entries: 2 } => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn settings_are_zero_until_set() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        assert_eq!(datapath.settings().expect("read"), Settings::default());
        let settings = Settings { listened_until_ns: u64::MAX };

        datapath.set_settings(&settings).expect("write");

        assert_eq!(node.open().expect("pins").settings().expect("read"), settings);
    });
}

#[test]
fn flows_are_counted_and_cleared() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        datapath.flows().fill_for_test(10);
        assert_eq!(datapath.flows().count().expect("count"), 20);

        datapath.flows().clear().expect("clear");

        assert_eq!(datapath.flows().count().expect("count"), 0);
    });
}

#[test]
fn a_test_run_counts_like_a_packet() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let frame = frame();

        let context = TestContext { repeat: 3, ..TestContext::default() };
        let run = datapath.test_run(Program::ToPod, &frame, context).expect("run");

        assert_eq!(run.action, -1, "TC_ACT_UNSPEC");
        assert_eq!(run.frame, frame);
        let stats = datapath.stats().expect("read the counters");
        let (_, traffic) = stats[Counter::ToPod as usize];
        assert_eq!((traffic.packets, traffic.bytes), (3, 3 * 60));
    });
}

/// A UDP packet from a pod that nobody knows.
pub(super) fn frame() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&[0xee; 6]);
    frame[6..12].copy_from_slice(&[2; 6]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbe, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame[34..42].copy_from_slice(&[0x10, 0, 0x10, 1, 0, 26, 0, 0]);
    frame
}
