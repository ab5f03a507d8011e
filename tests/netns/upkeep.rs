//! Upkeep of a node: what gone sandboxes leave is taken, what is missing is put back, and programs
//! are replaced under traffic.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use margay::config::NetConf;
use margay::lock::Lock;
use margay::naming;
use margay::netns::Netns;
use margay::upkeep::{Reattached, Reclaimed, Upkeep};
use margay_abi::{ABI_VERSION, PodInfo};
use margay_datapath::{Datapath, ProgramId};
use margay_datastore::Store;
use margay_tests::node::node_address;
use margay_tests::numbers::Numbers;
use margay_tests::pod::address;
use margay_tests::traffic::{PATIENCE, assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

#[test]
fn what_a_gone_sandbox_left_is_taken_at_the_second_look() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    // An ifb does not go with the sandbox, and neither does the pin of a TCX link.
    network["attach"] = json!("tcx");
    network["runtimeConfig"] =
        json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 800_000}});
    let (kept, gone) = (node.sandbox("kept"), node.sandbox("gone"));
    let kept_result = kept.add(&network);
    gone.add(&network);
    let attachment = gone.attachment("podnet", "eth0");
    end(&node, gone);
    assert_eq!(node.pod_links().len(), 3, "the ifb is left");

    let mut upkeep = upkeep(&node, &network);
    let first = upkeep.reclaim();
    assert_eq!((first.reclaimed, first.suspects), (vec![], 1));
    assert_eq!(node.pod_links().len(), 3);

    let second = upkeep.reclaim();
    assert_eq!((second.reclaimed, second.suspects), (vec![attachment], 0));
    assert!(second.failed.is_empty(), "{:?}", second.failed);
    let third = upkeep.reclaim();
    assert_eq!((third.reclaimed, third.suspects), (vec![], 0));

    assert_only_that_of(&node, &kept, &network, &kept_result);
    assert_eq!(fs::read_dir(pins(&node).join("links")).unwrap().count(), 2);
}

#[test]
fn nothing_is_taken_before_the_grace_time_is_over() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let gone = node.sandbox("gone");
    gone.add(&network);
    end(&node, gone);

    let mut upkeep = upkeep_after(&node, &network, Duration::from_secs(3600));
    for _ in 0..3 {
        let report = upkeep.reclaim();
        assert_eq!((report.reclaimed, report.suspects), (vec![], 1));
    }

    assert_eq!(node.store().endpoints("podnet").unwrap().len(), 1);
}

#[test]
fn a_sandbox_that_lives_on_without_its_path_is_left_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let held = Netns::open(pod.netns_path()).unwrap();
    pod.destroy();

    let mut upkeep = upkeep(&node, &network);
    for _ in 0..3 {
        let report = upkeep.reclaim();
        assert_eq!((report.reclaimed, report.suspects), (vec![], 0));
    }
    assert!(node.datapath().pods().get(address(&result, true)).unwrap().is_some());

    drop(held);
    wait_until("the veth pair goes with the namespace", || node.pod_links().is_empty());
    upkeep.reclaim();
    assert_eq!(upkeep.reclaim().reclaimed.len(), 1);
    assert_nothing_left(&node);
}

#[test]
fn a_path_that_leads_to_another_sandbox_is_no_sign_of_life() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (gone, other) = (node.sandbox("gone"), node.sandbox("other"));
    // As /proc/PID/ns/net does once the number is another process's.
    let path = node.path("of-a-process");
    symlink(gone.netns_path(), &path).unwrap();
    let add = gone.invocation("ADD", &network).env("CNI_NETNS", path.to_str().unwrap());
    add.execute().success();
    end(&node, gone);
    fs::remove_file(&path).unwrap();
    symlink(other.netns_path(), &path).unwrap();

    let mut upkeep = upkeep(&node, &network);
    upkeep.reclaim();
    assert_eq!(upkeep.reclaim().reclaimed.len(), 1);

    assert_nothing_left(&node);
}

#[test]
fn what_a_verb_is_at_work_on_and_what_was_added_anew_is_left_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let gone = node.sandbox("a");
    gone.add(&network);
    let attachment = gone.attachment("podnet", "eth0");
    end(&node, gone);

    let mut upkeep = upkeep(&node, &network);
    upkeep.reclaim();
    let lock = Lock::take(&node.path("run"), &naming::host_veth(&attachment)).unwrap();
    let busy = upkeep.reclaim();
    assert_eq!(busy.reclaimed, []);
    drop(lock);

    let again = node.sandbox("a");
    let result = again.add(&network);
    assert_eq!(upkeep.reclaim().reclaimed, []);
    assert_only_that_of(&node, &again, &network, &result);
    // And gone once more, it is another assignment, to be looked at twice.
    end(&node, again);
    assert_eq!(upkeep.reclaim().reclaimed, []);
    assert_eq!(upkeep.reclaim().reclaimed, [attachment]);
    assert_nothing_left(&node);
}

#[test]
fn what_a_killed_add_left_is_taken_with_its_sandbox() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    for changes in 0.. {
        let pod = node.sandbox("a");
        let killed = format!("change={changes}*off->1*return(kill)");
        let add = pod.invocation("ADD", &network).env("FAILPOINTS", &killed).execute();
        let mut upkeep = upkeep(&node, &network);
        for _ in 0..2 {
            assert_eq!(upkeep.reclaim().reclaimed, [], "its sandbox is there");
        }
        end(&node, pod);
        let handles = node.store().backend().list("handles/", None).unwrap().len();
        upkeep.reclaim();
        assert_eq!(upkeep.reclaim().reclaimed.len(), handles, "after {changes} changes");
        assert_nothing_left(&node);
        if add.is_success() {
            assert!(changes > 15, "an ADD has more changes than {changes}");
            return;
        }
    }
}

#[test]
fn addresses_of_another_ipam_plugin_are_left_to_it_with_the_record() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    // The reference plugins of Debian 12 do not speak 1.1.0.
    network["cniVersion"] = json!("1.0.0");
    network["ipam"] = json!({
        "type": "host-local", "dataDir": node.path("host-local"),
        "ranges": [[{"subnet": "10.244.0.0/24"}]],
    });
    let path = margay_tests::node::reference_plugin_directory();
    let gone = node.sandbox("gone");
    let add = gone.invocation("ADD", &network).env("CNI_PATH", path.to_str().unwrap());
    add.execute().success();
    let attachment = gone.attachment("podnet", "eth0");
    let mut collected = network.clone();
    collected["cni.dev/valid-attachments"] = json!([]);
    collected["cni.dev/attachments"] = json!([]);
    let del = gone.invocation("DEL", &network).env("CNI_PATH", path.to_str().unwrap());
    end(&node, gone);

    let mut upkeep = upkeep(&node, &network);
    upkeep.reclaim();
    for _ in 0..2 {
        let report = upkeep.reclaim();
        assert_eq!((report.reclaimed, report.left_to_ipam), (vec![], vec![attachment.clone()]));
    }

    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
    assert_eq!(node.store().endpoints("podnet").unwrap().len(), 1);
    let leases = || {
        let names = fs::read_dir(node.path("host-local/podnet")).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
    };
    assert_eq!(leases(), 1);
    del.execute().success();
    assert_eq!((leases(), node.store().endpoints("podnet").unwrap().len()), (0, 0));
}

#[test]
fn map_entries_and_lock_files_that_nobody_has_are_taken() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let datapath = node.datapath();
    let known = *datapath.pods().entries().unwrap().values().next().unwrap();
    let orphan = PodInfo { ifindex: 0x00ff_ffff, ..known };
    let address_of_nobody = "10.99.0.1".parse().unwrap();
    datapath.pods().insert(address_of_nobody, &orphan).unwrap();
    fs::write(node.path("run/lock/of-a-dead-process"), "").unwrap();

    let mut upkeep = upkeep(&node, &network);
    assert_eq!(upkeep.reclaim().map_entries, [] as [std::net::IpAddr; 0]);
    assert_eq!(upkeep.reclaim().map_entries, [address_of_nobody]);

    assert!(!node.path("run/lock/of-a-dead-process").exists());
    assert_only_that_of(&node, &pod, &network, &result);
}

#[test]
fn what_is_missing_of_a_pod_is_put_back() {
    for attach in ["clsact", "tcx"] {
        // A node of its own for each: a thread can be one only once.
        std::thread::spawn(move || {
            let Some(node) = Node::new() else { return };
            assert_all_is_put_back(&node, attach);
        })
        .join()
        .unwrap();
    }
}

fn assert_all_is_put_back(node: &Node, attach: &str) {
    let mut network = node.network();
    network["attach"] = json!(attach);
    network["answer_any_arp"] = json!(true);
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result, other) = (a.add(&network), b.add(&network));
    let veth = veth(&result);
    let report = upkeep(node, &network).reattach();
    assert_nothing_done(&report, 2);

    match attach {
        "tcx" => fs::remove_file(pins(node).join(format!("links/{veth}-to_pod"))).unwrap(),
        _ => drop(node.run(&["tc", "filter", "del", "dev", &veth, "egress", "prio", "100"])),
    }
    let ipv4 = address(&result, true);
    node.datapath().pods().remove(ipv4).unwrap();
    let ipv4 = ipv4.to_string();
    node.run(&["ip", "route", "del", &ipv4]);
    let ipv6 = address(&result, false).to_string();
    node.run(&["ip", "neigh", "del", &ipv6, "dev", &veth]);
    assert!(!a.check(&network, &result).is_success());

    let report = upkeep(node, &network).reattach();

    let attachment = a.attachment("podnet", "eth0");
    assert_eq!((&report.attached, &report.replaced), (&vec![attachment], &vec![]));
    assert_eq!(report.map_entries, [address(&result, true)]);
    assert_eq!(report.routes, [address(&result, true), address(&result, false)]);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let check = a.check(&network, &result);
    assert!(check.is_success(), "{}", check.stdout());
    for ipv4 in [true, false] {
        assert_ping(&b, address(&result, ipv4));
        assert_tcp(&a, &b, address(&other, ipv4));
    }
    let report = upkeep(node, &network).reattach();
    assert_nothing_done(&report, 2);
}

#[test]
fn filters_and_routes_of_others_are_left_to_them() {
    const OBSERVER: &str = "1,6 0 0 0,";
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result, other) = (a.add(&network), b.add(&network));
    let (veth, ipv4) = (veth(&result), address(&result, true).to_string());
    let tc = |line: &str| node.run(&line.split_whitespace().collect::<Vec<_>>());
    tc(&format!("tc filter del dev {veth} ingress prio 100"));
    let observer =
        ["tc", "filter", "add", "dev", &veth, "ingress", "prio", "100", "bpf", "bytecode"];
    node.run(&[&observer[..], &[OBSERVER]].concat());
    tc(&format!("ip route replace {ipv4} dev {}", self::veth(&other)));
    let foreign = tc(&format!("tc filter show dev {veth} ingress"));

    let report = upkeep(&node, &network).reattach();

    assert_eq!(report.attached.len(), 1);
    let now = tc(&format!("tc filter show dev {veth} ingress"));
    assert!(
        now.contains("margay/from_pod") && foreign.lines().all(|line| now.contains(line)),
        "{now}"
    );
    let [(name, error)] = &report.failed[..] else { panic!("{:?}", report.failed) };
    assert!(name.contains('a') && error.to_string().contains("routed over"), "{name}: {error}");
}

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

#[test]
fn blocks_that_hold_nothing_are_given_up() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/30", "block_size": 30}]);
    let pod = node.sandbox("a");
    pod.add(&network);
    let released = || upkeep(&node, &network).upkeep.release_empty_blocks().unwrap();
    assert_eq!(released(), []);
    pod.del(&network);

    // Its address rests.
    assert_eq!(released(), []);
}

/// The upkeep of a node with the runtime that it runs on.
pub(crate) struct Keeper {
    pub(crate) upkeep: Upkeep,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Keeper {
    /// That of the node that the calling thread is on, of which nothing but the configuration is known.
    pub(crate) fn of(network: &Value) -> Self {
        let conf = NetConf::from_map(network.as_object().unwrap()).unwrap();
        let store = margay::ipam::open_store(&conf.datastore, &conf.paths.database()).unwrap();
        Self::new(store, network, Duration::ZERO)
    }

    fn new(store: Store, network: &Value, grace: Duration) -> Self {
        let conf = NetConf::from_map(network.as_object().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let upkeep =
            runtime.block_on(async { Upkeep::new(store, &conf.nodename, conf.paths, grace) });
        Self { upkeep: upkeep.unwrap(), runtime }
    }

    pub(crate) fn reclaim(&mut self) -> Reclaimed {
        let report = self.runtime.block_on(self.upkeep.reclaim()).unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }

    pub(crate) fn reattach(&self) -> Reattached {
        self.runtime.block_on(self.upkeep.reattach()).unwrap()
    }

    pub(crate) fn make_current(&self) {
        self.upkeep.make_current().unwrap();
    }

    pub(crate) fn remove_unused_pins(&self) -> Vec<PathBuf> {
        self.runtime.block_on(self.upkeep.remove_unused_pins()).unwrap()
    }
}

pub(crate) fn upkeep(node: &Node, network: &Value) -> Keeper {
    upkeep_after(node, network, Duration::ZERO)
}

fn upkeep_after(node: &Node, network: &Value, grace: Duration) -> Keeper {
    Keeper::new(node.store(), network, grace)
}

/// Ends a sandbox and waits for its interfaces to be gone, which the kernel sees to later.
pub(crate) fn end(node: &Node, pod: Pod<'_>) {
    let veth = naming::host_veth(&pod.attachment("podnet", "eth0"));
    pod.destroy();
    wait_until("the veth pair goes with the sandbox", || {
        node.pod_links().iter().all(|link| link.name != veth)
    });
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_nothing_done(report: &Reattached, pods: usize) {
    let Reattached { attached, replaced, map_entries, routes, failed, .. } = report;
    let done = (attached.len(), replaced.len(), map_entries.len(), routes.len(), failed.len());
    assert_eq!((report.pods, done), (pods, (0, 0, 0, 0, 0)), "{report:?}");
}

pub(crate) fn assert_only_that_of(node: &Node, pod: &Pod<'_>, network: &Value, result: &Value) {
    let check = pod.check(network, result);
    assert!(check.is_success(), "{}", check.stdout());
    assert_ping(pod, node_address(true));
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 2);
    assert_eq!(node.store().endpoints("podnet").unwrap().len(), 1);
    assert_eq!(node.store().backend().list("handles/", None).unwrap().len(), 1);
}

pub(crate) fn assert_nothing_left(node: &Node) {
    assert_eq!(node.pod_links(), []);
    if let Some(pods) = margay_datapath::Pods::open(&node.bpffs_root()).unwrap() {
        assert_eq!(pods.entries().unwrap().len(), 0);
    }
    assert_eq!(node.store().endpoints("podnet").unwrap(), []);
    assert_eq!(node.store().backend().list("handles/", None).unwrap(), []);
    let locks = fs::read_dir(node.path("run/lock")).map(Iterator::count);
    assert_eq!(locks.unwrap_or(0), 0);
}

pub(crate) fn veth(result: &Value) -> String {
    result["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

/// The folder of this ABI version's pins.
pub(crate) fn pins(node: &Node) -> PathBuf {
    node.bpffs_root().join(ABI_VERSION.to_string())
}

pub(crate) fn build_folder(node: &Node) -> PathBuf {
    pins(node).join("progs").join(node.datapath().build())
}

/// What this build has pinned becomes another build's.
pub(crate) fn rename_build(node: &Node, other: &str) {
    fs::rename(build_folder(node), pins(node).join("progs").join(other)).unwrap();
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

fn lock(node: &Node, pod: &Pod<'_>) -> Lock {
    let name = naming::host_veth(&pod.attachment("podnet", "eth0"));
    Lock::take(&node.path("run"), &name).unwrap()
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
