//! Upkeep after an upgrade: programs are replaced under traffic, and pins of other builds and ABI
//! versions go when nothing uses them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use margay::lock::Lock;
use margay_abi::{ABI_VERSION, PodInfo};
use margay_agent::metrics::Metrics;
use margay_agent::upkeep::look_after;
use margay_datapath::{Datapath, ProgramId};
use margay_tests::Node;
use margay_tests::node::node_address;
use margay_tests::numbers::Numbers;
use margay_tests::pod::address;
use margay_tests::traffic::{PATIENCE, assert_ping, assert_tcp};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::{select, task, time};

use crate::upkeep::{
    Keeper, assert_nothing_done, build_folder, lock, pins, rename_build, upkeep, upkeep_after, veth,
};

#[test]
fn programs_are_replaced_under_traffic_without_a_loss() {
    for attach in ["clsact", "tcx"] {
        std::thread::spawn(move || {
            let Some(node) = Node::new() else { return };
            let mut network = node.network();
            network["attach"] = json!(attach);
            let (a, b) = (node.sandbox("a"), node.sandbox("b"));
            let (result_a, result_b) = (a.add(&network), b.add(&network));
            rename_build(&node, "0123456789ab");
            let numbers = Numbers::start(
                (&a, address(&result_a, true), address(&result_a, false)),
                (&b, address(&result_b, true), address(&result_b, false)),
            );

            let upkeep = upkeep(&node, &network);
            for turn in 0..40 {
                upkeep.make_current();
                let report = upkeep.reattach();
                assert_eq!(report.replaced.len(), 2, "{turn}: {report:?}");
                assert!(report.attached.is_empty() && report.failed.is_empty(), "{report:?}");
                // What is this build's becomes the other's, and the other way round.
                swap_builds(&node, "0123456789ab");
                numbers.wait_for_more();
            }

            numbers.stop();
        })
        .join()
        .unwrap();
    }
}

#[test]
fn pods_of_an_earlier_version_are_taken_over_under_traffic() {
    for attach in ["clsact", "tcx"] {
        std::thread::spawn(move || {
            let Some(node) = Node::new() else { return };
            let mut network = node.network();
            network["attach"] = json!(attach);
            let pods = ["a", "b", "c"].map(|name| node.sandbox(name));
            let results = pods.each_ref().map(|pod| pod.add(&network));
            let [a, b, _] = &pods;
            age(&node);
            let numbers = Numbers::start(
                (a, address(&results[0], true), address(&results[0], false)),
                (b, address(&results[1], true), address(&results[1], false)),
            );
            numbers.wait_for_more();
            // One after the other, so that pods of both versions are there for a while.
            let upkeep = upkeep(&node, &network);
            for (turn, pod) in pods.iter().enumerate() {
                let locks: Vec<Lock> =
                    pods[turn + 1..].iter().map(|pod| lock(&node, pod)).collect();
                let report = upkeep.reattach();
                assert_eq!(report.replaced, [pod.attachment("podnet", "eth0")], "{report:?}");
                assert!(report.failed.is_empty(), "{report:?}");
                numbers.wait_for_more();
                drop(locks);
            }
            assert_nothing_done(&upkeep.reattach(), 3);
            numbers.stop();

            for (pod, result) in pods.iter().zip(&results) {
                let check = pod.check(&network, result);
                assert!(check.is_success(), "{}", check.stdout());
                assert_ping(pod, address(&results[0], true));
                assert_tcp(&pods[1], pod, address(result, false));
                let address = address(result, true);
                assert_eq!(
                    Datapath::earlier_entries(&node.bpffs_root(), address).unwrap().len(),
                    0
                );
            }
            let removed = upkeep.remove_unused_pins();
            assert!(removed.contains(&"0".into()), "{removed:?}");
            assert!(!node.bpffs_root().join("0").exists());
            assert_tcp(&pods[0], &pods[1], address(&results[1], true));
        })
        .join()
        .unwrap();
    }
}

#[test]
fn an_agent_takes_no_pod_over_before_the_new_maps_know_the_ways() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    age(&node);
    let (root, address) = (node.bpffs_root(), address(&result, true));
    let is_taken_over =
        || Datapath::earlier_entries(&root, address).expect("earlier maps").is_empty();
    let Keeper { upkeep, runtime } = upkeep(&node, &network);

    runtime.block_on(async {
        let metrics = Metrics::new(root.clone());
        let (made, mut maps) = mpsc::channel(1);
        let mut agent = pin!(look_after(upkeep, Duration::from_secs(60), &metrics, made));
        let taught = select! {
            biased;
            () = agent.as_mut() => unreachable!("it goes on for ever"),
            taught = maps.recv() => taught.expect("it is there to hear"),
            () = time::sleep(PATIENCE) => panic!("it asks nobody to teach the maps"),
        };
        assert!(Datapath::open(&root).unwrap().is_some(), "the maps are made");

        // The kernel answers at once, so whatever it could do is done by then.
        for _ in 0..10_000 {
            go_on(agent.as_mut()).await;
        }
        assert!(!is_taken_over());

        drop(taught);
        let deadline = Instant::now() + PATIENCE;
        while !is_taken_over() {
            assert!(Instant::now() < deadline, "the pod is not taken over");
            go_on(agent.as_mut()).await;
        }
    });

    assert_ping(&pod, node_address(true));
}

#[test]
fn a_pod_that_gets_no_map_entry_keeps_the_filters_that_know_it() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["max_pods"] = json!(2);
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    age(&node);
    let upkeep = upkeep(&node, &network);
    upkeep.make_current();
    // The map is as large as it was, and full.
    let datapath = node.datapath();
    let others = PodInfo { ifindex: 1, mtu: 0, flags: 0, pod_mac: [2; 6], host_mac: [2; 6] };
    for last in [1, 2] {
        datapath.pods().insert([10, 99, 0, last].into(), &others).unwrap();
    }
    let before = programs(&node, &result);

    let report = upkeep.reattach();

    assert_eq!((report.failed.len(), report.replaced.len()), (1, 0), "{report:?}");
    assert_eq!(programs(&node, &result), before);
    assert_ping(&pod, node_address(true));
    datapath.pods().remove([10, 99, 0, 1].into()).unwrap();
    assert_eq!(upkeep.reattach().replaced.len(), 1);
    assert_ping(&pod, node_address(true));
}

#[test]
fn del_takes_what_an_earlier_version_has_of_a_pod() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));
    age(&node);
    let earlier = |result| {
        let address = address(result, true);
        Datapath::earlier_entries(&node.bpffs_root(), address).unwrap().len()
    };
    assert_eq!((earlier(&result_a), earlier(&result_b)), (1, 1));

    a.del(&network);

    assert_eq!((earlier(&result_a), earlier(&result_b)), (0, 1));
    assert_ping(&b, node_address(true));
}

#[test]
fn programs_that_an_interface_uses_and_the_current_ones_stay_pinned() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (old, new) = (node.sandbox("old"), node.sandbox("new"));
    old.add(&network);
    rename_build(&node, "0123456789ab");
    let old_pins = pins(&node).join("progs/0123456789ab");
    new.add(&network);
    let removed = |grace| upkeep_after(&node, &network, grace).remove_unused_pins();

    assert_eq!(removed(Duration::ZERO), [] as [PathBuf; 0], "one pod uses each");
    old.del(&network);
    assert_eq!(removed(Duration::from_secs(3600)), [] as [PathBuf; 0]);
    assert!(old_pins.exists());
    let path = PathBuf::from(ABI_VERSION.to_string()).join("progs/0123456789ab");
    assert_eq!(removed(Duration::ZERO), [path]);

    assert!(!old_pins.exists());
    new.del(&network);
    assert_eq!(removed(Duration::ZERO), [] as [PathBuf; 0], "the current build stays");
    new.add(&network);
    assert_ping(&new, node_address(true));
}

#[test]
fn a_build_that_became_current_later_is_left_to_its_pods() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    rename_build(&node, "0123456789ab");
    let upkeep = upkeep(&node, &network);
    upkeep.make_current();
    assert_eq!(upkeep.reattach().replaced.len(), 1);
    let later = programs(&node, &result);
    // The later build is another's: this one is what came before it.
    swap_builds(&node, "0123456789ab");

    assert_nothing_done(&upkeep.reattach(), 1);
    assert_eq!(programs(&node, &result), later);

    // Started on purpose, it is the current one all the same.
    upkeep.make_current();
    assert_eq!(upkeep.reattach().replaced.len(), 1);
    assert!(programs(&node, &result).is_disjoint(&later));
}

/// Lets it do what it can do now.
async fn go_on(agent: Pin<&mut impl Future<Output = ()>>) {
    select! {
        biased;
        () = agent => unreachable!("it goes on for ever"),
        () = task::yield_now() => {}
    }
}

fn swap_builds(node: &Node, other: &str) {
    let (ours, progs) = (build_folder(node), pins(node).join("progs"));
    fs::rename(&ours, progs.join("aside")).unwrap();
    fs::rename(progs.join(other), &ours).unwrap();
    fs::rename(progs.join("aside"), progs.join(other)).unwrap();
}

/// What is pinned becomes an earlier ABI version's.
fn age(node: &Node) {
    fs::rename(pins(node), node.bpffs_root().join("0")).unwrap();
}

/// The programs on a pod's host veth.
fn programs(node: &Node, result: &Value) -> BTreeSet<ProgramId> {
    let name = veth(result);
    let ifindex = node.pod_links().into_iter().find(|link| link.name == name).unwrap().index;
    node.netlink(async |netlink| {
        let programs = Datapath::programs_in_use(netlink.handle(), ifindex).await.unwrap();
        programs.into_iter().collect()
    })
}
