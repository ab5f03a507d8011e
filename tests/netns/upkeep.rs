//! Upkeep of a node: what gone sandboxes leave is taken, and what is missing is put back.

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
use margay_datastore::Store;
use margay_tests::node::node_address;
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
fn blocks_that_hold_nothing_are_given_up() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/30", "block_size": 30}]);
    let pod = node.sandbox("a");
    pod.add(&network);
    let released = || upkeep(&node, &network).upkeep.tend_blocks().unwrap().released;
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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
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

pub(crate) fn upkeep_after(node: &Node, network: &Value, grace: Duration) -> Keeper {
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

pub(crate) fn assert_nothing_done(report: &Reattached, pods: usize) {
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

pub(crate) fn lock(node: &Node, pod: &Pod<'_>) -> Lock {
    let name = naming::host_veth(&pod.attachment("podnet", "eth0"));
    Lock::take(&node.path("run"), &name).unwrap()
}
