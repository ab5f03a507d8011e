//! Many plugins at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use margay_datastore::{Endpoint, EndpointState};
use margay_tests::pod::address;
use margay_tests::residue::assert_only;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Node, Pod};
use serde_json::{Value, json};

const PODS: usize = 50;

#[test]
fn fifty_adds_at_once_all_succeed_with_addresses_of_their_own_and_fifty_dels_leave_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.sandbox(&format!("pod{n}"))).collect();

    // All of them find a node without programs: one loads, the others wait for it.
    let adds: Vec<_> = pods.iter().map(|pod| pod.invocation("ADD", &network).start()).collect();
    let results: Vec<_> = adds.into_iter().map(|child| CniOutput::of(child).success()).collect();

    let addresses: BTreeSet<IpAddr> =
        results.iter().flat_map(|result| [address(result, true), address(result, false)]).collect();
    assert_eq!(addresses.len(), 2 * PODS);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 2 * PODS);
    assert_eq!(node.pod_links().len(), PODS);
    for (pod, other) in [(0, 49), (17, 3), (49, 25)] {
        assert_ping(&pods[pod], address(&results[other], true));
        assert_ping(&pods[pod], address(&results[other], false));
    }

    let dels: Vec<_> = pods.iter().map(|pod| pod.invocation("DEL", &network).start()).collect();
    for child in dels {
        CniOutput::of(child).success();
    }
    assert_eq!(node.pod_links(), []);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
}

#[test]
fn of_two_adds_of_one_attachment_at_once_exactly_one_succeeds() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    for round in 0..5 {
        let pod = node.sandbox(&format!("pod{round}"));
        let both = [(); 2].map(|()| pod.invocation("ADD", &network).start());
        let outputs = both.map(CniOutput::of);

        let succeeded = outputs.iter().filter(|output| output.is_success()).count();
        assert_eq!(succeeded, 1, "{}{}", outputs[0].stderr(), outputs[1].stderr());
        let winner = outputs.iter().find(|output| output.is_success()).unwrap().success();
        assert!(pod.check(&network, &winner).is_success());
        assert_ping(&node, address(&winner, true));
    }
}

#[test]
fn two_hundred_pods_come_and_go_sixteen_at_a_time() {
    const PODS: usize = 200;
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.sandbox(&format!("pod{n}"))).collect();

    let results = Mutex::new(BTreeMap::new());
    sixteen_at_a_time(PODS, |number| {
        let pod = &pods[number];
        let result = pod.add(&network);
        let check = pod.check(&network, &result);
        assert!(check.is_success(), "{number}: {}", check.stdout());
        if number % 2 == 0 {
            pod.del(&network);
        } else {
            results.lock().unwrap().insert(number, result);
        }
    });

    let results = results.into_inner().unwrap();
    let addresses: BTreeSet<IpAddr> =
        results.values().map(|result| address(result, true)).collect();
    assert_eq!(addresses.len(), PODS / 2);
    let left: Vec<_> = results.iter().map(|(number, result)| (&pods[*number], result)).collect();
    assert_ping(&pods[1], address(&results[&199], true));
    assert_ping(&pods[199], address(&results[&101], false));
    assert_only(&node, &left, "half of them are gone");
    sixteen_at_a_time(PODS, |number| pods[number].del(&network));
    assert_only(&node, &[], "all of them are gone");
}

#[test]
fn a_del_beside_an_add_leaves_all_or_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let warm = node.sandbox("warm");
    warm.add(&network);
    warm.del(&network);
    let mut survived = 0;
    for round in 0..24_u64 {
        let pod = node.sandbox(&format!("pod{round}"));
        let add = pod.invocation("ADD", &network).start();
        // From at once to after the ADD, wherever that takes a DEL to.
        std::thread::sleep(Duration::from_millis(round));
        let del = pod.invocation("DEL", &network).start();
        let (add, del) = (CniOutput::of(add), CniOutput::of(del));
        assert!(del.is_success(), "{round}: {}", del.stdout());

        let context = format!("round {round}");
        let result = add.success();
        if node.pod_links().is_empty() {
            assert_only(&node, &[], &context);
        } else {
            survived += 1;
            assert_only(&node, &[(&pod, &result)], &context);
        }
        pod.del(&network);
        assert_only(&node, &[], &context);
    }
    eprintln!("the ADD came last in {survived} of 24 rounds");
}

#[test]
fn two_nodes_on_one_datastore_never_share_an_address_and_collect_no_garbage_of_each_other() {
    const PODS: usize = 24;
    let directory = tempfile::tempdir().unwrap();
    let state: PathBuf = directory.path().join("state");
    let barrier = Barrier::new(2);
    let seen = Mutex::new(BTreeSet::new());
    let work = |name: &str| {
        let Some(node) = Node::new() else { return };
        let mut network = node.network();
        network["nodename"] = json!(name);
        network["state_dir"] = json!(state);
        let pods: Vec<_> = (0..PODS).map(|n| node.sandbox(&format!("{name}-{n}"))).collect();
        barrier.wait();
        let results = Mutex::new(BTreeMap::new());
        sixteen_at_a_time(PODS, |number| {
            let result = pods[number].add(&network);
            results.lock().unwrap().insert(number, result);
        });
        let results = results.into_inner().unwrap();
        for result in results.values() {
            for ipv4 in [true, false] {
                let address = address(result, ipv4);
                assert!(seen.lock().unwrap().insert(address), "{address} is given twice");
            }
        }
        barrier.wait();

        let valid: Vec<Value> = results.keys().map(|n| entry(&pods[*n])).collect();
        collect(&pods[0], &network, &valid).success();
        barrier.wait();

        for (number, result) in &results {
            let check = pods[*number].check(&network, result);
            assert!(check.is_success(), "{name}: {}", check.stdout());
        }
        sixteen_at_a_time(PODS, |number| pods[number].del(&network));
        assert_eq!(node.pod_links(), []);
        assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
        barrier.wait();
        let store = margay_datastore::Store::new(
            margay_datastore::Sqlite::open(&state.join("margay.db")).unwrap(),
        );
        assert_eq!(store.endpoints("podnet").unwrap(), []);
        let usage = margay_datastore::Ipam::new(&store, name, "any");
        let usage = usage.usage(&store.pools().unwrap()).unwrap();
        assert!(usage.iter().all(|pool| pool.used == 0), "{usage:?}");
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work("node-b"));
        // A thread of its own as well: the test's own must not be in a node's namespaces before.
        let one = scope.spawn(|| work("node-a"));
        one.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn gc_leaves_an_add_alone_that_is_under_way() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let garbage = node.sandbox("garbage");
    garbage.add(&network);
    for phase in ["veth", "link_up", "endpoint"] {
        let pod = node.sandbox(&format!("at-{phase}"));
        let slow =
            pod.invocation("ADD", &network).env("FAILPOINTS", &format!("{phase}=sleep(500)"));
        let add = slow.start();
        let ipam_knows = || {
            let store = node.store();
            let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
            ipam.assigned(&pod.attachment("podnet", "eth0")).unwrap().len() == 2
        };
        wait_until("the ADD has its addresses", ipam_knows);

        collect(&pod, &network, &[]).success();

        let result = CniOutput::of(add).success();
        assert_only(&node, &[(&pod, &result)], phase);
        assert_ping(&node, address(&result, true));
        collect(&pod, &network, &[]).success();
        assert_only(&node, &[], "a later GC");
    }
}

#[test]
fn gc_leaves_an_add_alone_that_came_to_its_end_since_it_began() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (garbage, new) = (node.sandbox("garbage"), node.sandbox("new"));
    garbage.add(&network);
    let mut config = network.clone();
    config["cni.dev/valid-attachments"] = json!([]);
    let gc = garbage.invocation("GC", &config).start_held();
    gc.wait_until_it_reads();

    let result = new.add(&network);
    CniOutput::of(gc.go_on()).success();

    assert_only(&node, &[(&new, &result)], "after GC");
}

#[test]
fn gc_over_and_over_while_pods_come_takes_none_of_them_away() {
    const PODS: usize = 48;
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.sandbox(&format!("pod{n}"))).collect();
    let caller = node.sandbox("caller");
    let results = Mutex::new(BTreeMap::new());
    let is_over = AtomicBool::new(false);

    let rounds = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                // The list is what has been added when GC has begun.
                let mut config = network.clone();
                let begun = caller.invocation("GC", &config).stdin(b" ").start_held();
                begun.wait_until_it_reads();
                // An ADD in the middle of its last write, at that moment, has ended for GC.
                std::thread::sleep(Duration::from_millis(50));
                config["cni.dev/valid-attachments"] = json!(ready(&node));
                CniOutput::of(begun.go_on_with(&config)).success();
                rounds += 1;
            }
            rounds
        });
        sixteen_at_a_time(PODS, |number| {
            let result = pods[number].add(&network);
            results.lock().unwrap().insert(number, result);
        });
        is_over.store(true, Ordering::Relaxed);
        collector.join().unwrap()
    });

    assert!(rounds > 0, "no GC was quick enough");
    eprintln!("{rounds} times");
    let results = results.into_inner().unwrap();
    let left: Vec<_> = results.iter().map(|(number, result)| (&pods[*number], result)).collect();
    assert_only(&node, &left, "after many a GC");
}

fn sixteen_at_a_time(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    // The threads are in the namespaces of the one that starts them.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

fn collect(caller: &Pod<'_>, network: &Value, valid: &[Value]) -> CniOutput {
    let mut config = network.clone();
    config["cni.dev/valid-attachments"] = json!(valid);
    caller.invocation("GC", &config).execute()
}

fn entry(pod: &Pod<'_>) -> Value {
    json!({"containerID": pod.container_id(), "ifname": "eth0"})
}

/// All that is attached, as a runtime lists it.
fn ready(node: &Node) -> Vec<Value> {
    let endpoints = node.store().endpoints("podnet").unwrap().into_iter();
    let ready = endpoints.filter(|endpoint| endpoint.state == EndpointState::Ready);
    let entry = |endpoint: Endpoint| json!({"containerID": endpoint.attachment.container_id(), "ifname": "eth0"});
    ready.map(entry).collect()
}

pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}
