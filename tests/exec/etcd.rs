//! The plugins on a real etcd: as on the local datastore, several nodes at once, and etcd gone at the
//! worst moments.

mod deletions;
mod margay_ipam;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use margay_datastore::testing::etcd::EtcdCluster;
use margay_datastore::{Backend, Store};
use margay_tests::node::on_etcd;
use margay_tests::pod::address;
use margay_tests::residue::assert_only_attached_in;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Invocation, Node, Pod};
use serde_json::{Value, json};

/// Beyond what anything here takes, on a machine however busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn every_verb_keeps_its_records_in_etcd() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start());
    let (one, other) = (node.sandbox("one"), node.sandbox("other"));

    scene.status().success();
    let (one_result, other_result) = (one.add(&scene.network), other.add(&scene.network));
    assert_ping(&one, address(&other_result, true));
    assert_ping(&other, address(&one_result, false));
    for (pod, result) in [(&one, &one_result), (&other, &other_result)] {
        let check = pod.check(&scene.network, result);
        assert!(check.is_success(), "{}", check.stdout());
    }
    scene.assert_only(&[(&one, &one_result), (&other, &other_result)], "after ADD");
    let (code, _) = one.invocation("ADD", &scene.network).execute().error();
    assert_eq!(code, 100);

    let mut gc = scene.network.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "one", "ifname": "eth0"}]);
    Invocation::new("margay", "GC", &gc).execute().success();
    scene.assert_only(&[(&one, &one_result)], "after GC");
    one.del(&scene.network);
    one.del(&scene.network);
    scene.assert_only(&[], "after DEL");
    assert!(!node.path("state/margay.db").exists());
}

#[test]
fn every_verb_reaches_etcd_behind_tls_and_a_certificate_that_is_none_is_an_error() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start_with_tls());
    let pod = node.sandbox("a");

    scene.status().success();
    let result = pod.add(&scene.network);
    assert!(pod.check(&scene.network, &result).is_success());
    pod.del(&scene.network);
    scene.assert_only(&[], "after DEL");

    let client_cert = scene.cluster.tls().client_cert();
    scene.network["etcd_ca_cert_file"] = json!(client_cert.cert_file);
    let (code, message) = pod.invocation("ADD", &scene.network).execute().error();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("invalid peer certificate"), "{message}");
    scene.network["etcd_ca_cert_file"] = json!(node.path("nowhere"));
    let (code, message) = pod.invocation("ADD", &scene.network).execute().error();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("nowhere"), "{message}");
    assert_eq!(node.pod_links(), []);
}

#[test]
fn two_nodes_that_race_for_blocks_give_no_address_twice() {
    const PODS: usize = 12;
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start_three());
    let networks = ["a", "b"].map(|name| {
        let mut network = scene.network.clone();
        network["nodename"] = json!(name);
        network["state_dir"] = json!(node.path(&format!("state-{name}")));
        network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/27", "block_size": 30}]);
        network
    });
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.sandbox(&format!("pod{n}"))).collect();
    let network = |n: usize| &networks[n % 2];

    let adds: Vec<_> =
        pods.iter().enumerate().map(|(n, pod)| pod.invocation("ADD", network(n)).start()).collect();
    let results: Vec<Value> = adds.into_iter().map(|add| CniOutput::of(add).success()).collect();

    let addresses: BTreeSet<IpAddr> = results.iter().map(|result| address(result, true)).collect();
    assert_eq!(addresses.len(), PODS);
    assert_eq!(scene.keys("nodes/"), ["nodes/a", "nodes/b"]);
    for (n, pod) in pods.iter().enumerate() {
        assert!(pod.check(network(n), &results[n]).is_success());
    }
    for (n, pod) in pods.iter().enumerate() {
        pod.del(network(n));
    }
    assert_eq!(scene.keys("endpoints/"), [] as [&str; 0]);
    assert_eq!(scene.keys("handles/"), [] as [&str; 0]);
}

#[test]
fn an_add_without_etcd_is_to_be_tried_again_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    scene.cluster.kill(0);

    let (code, message) = pod.invocation("ADD", &scene.network).execute().error();

    assert_eq!(code, 11, "{message}");
    assert!(message.contains(scene.network["etcd_endpoints"].as_str().unwrap()), "{message}");
    assert_eq!(node.pod_links(), []);
    let (code, message) = scene.status().error();
    assert_eq!(code, 50, "{message}");
    scene.cluster.restart(0);
    pod.add(&scene.network);
}

#[test]
fn an_etcd_that_does_not_answer_is_waited_for_and_no_longer_than_configured() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    let result = pod.add(&scene.network);
    scene.signal(rustix::process::Signal::STOP);

    let (code, message) = node.sandbox("b").invocation("ADD", &scene.network).execute().error();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("no answer within"), "{message}");
    let (code, message) = pod.invocation("CHECK", &scene.with_previous(&result)).execute().error();
    assert_eq!(code, 11, "{message}");
    pod.del(&scene.network);
    assert_eq!(node.pod_links(), []);

    scene.signal(rustix::process::Signal::CONT);
    scene.status().success();
    scene.assert_only(&[], "after the DEL that was put off");
}

#[test]
fn an_add_that_loses_etcd_half_way_leaves_nothing_once_etcd_is_back() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let warm = node.sandbox("warm");
    warm.add(&scene.network);
    warm.del(&scene.network);
    let pod = node.sandbox("a");

    let add = pod.invocation("ADD", &scene.network).env("FAILPOINTS", "attach=sleep(3000)").start();
    scene.wait_until(|| !node.pod_links().is_empty());
    scene.cluster.kill(0);
    let (code, message) = CniOutput::of(add).error();

    assert_eq!(code, 11, "{message}");
    assert_eq!(node.pod_links(), []);
    assert_eq!(scene.put_off(), 1);
    scene.cluster.restart(0);
    assert_eq!(scene.keys("handles/").len(), 1, "its addresses are held until then");
    scene.status().success();
    scene.assert_only(&[], "after the next verb");
    assert_eq!(scene.put_off(), 0);
}

#[test]
fn a_damaged_record_of_the_node_in_etcd_keeps_no_pod_from_going() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start());
    let pod = node.sandbox("a");
    pod.add(&scene.network);
    scene.damage("nodes/node-under-test");

    pod.del(&scene.network);

    scene.assert_only(&[], "after DEL");
}

/// A node whose records are in etcd.
struct Scene<'node> {
    node: &'node Node,
    cluster: EtcdCluster,
    network: Value,
}

impl<'node> Scene<'node> {
    fn new(node: &'node Node, cluster: EtcdCluster) -> Self {
        let mut network = on_etcd(node.network(), &cluster);
        // Nobody here wants to wait for what will not come.
        network["etcd_connect_timeout_ms"] = json!(1000);
        network["etcd_request_timeout_ms"] = json!(2000);
        Self { node, cluster, network }
    }

    fn status_invocation(&self) -> Invocation {
        Invocation::new("margay", "STATUS", &self.network)
    }

    fn status(&self) -> CniOutput {
        self.status_invocation().execute()
    }

    fn with_previous(&self, result: &Value) -> Value {
        let mut network = self.network.clone();
        network["prevResult"] = result.clone();
        network
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.cluster.open().list(prefix, None).unwrap();
        listed.into_iter().map(|versioned| versioned.key).collect()
    }

    /// What a plugin with margay-ipam is configured with on this node.
    fn of_margay_ipam(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "podnet",
            "type": "ptp",
            "etcd_endpoints": self.network["etcd_endpoints"],
            "etcd_connect_timeout_ms": self.network["etcd_connect_timeout_ms"],
            "etcd_request_timeout_ms": self.network["etcd_request_timeout_ms"],
            "ipam": {
                "type": "margay-ipam",
                "nodename": "node-under-test",
                "state_dir": self.node.path("state"),
                "run_dir": self.node.path("run"),
                "pools": self.network["ipam"]["pools"],
            },
        })
    }

    /// Makes pods and deletes them while etcd is gone.
    fn put_off_dels_of(&mut self, names: &[&str]) {
        let pods: Vec<_> = names.iter().map(|name| self.node.sandbox(name)).collect();
        pods.iter().for_each(|pod| drop(pod.add(&self.network)));
        self.cluster.kill(0);
        pods.iter().for_each(|pod| pod.del(&self.network));
        pods.into_iter().for_each(Pod::destroy);
        self.cluster.restart(0);
    }

    /// Number of deletions that wait for etcd.
    fn put_off(&self) -> usize {
        std::fs::read_dir(self.node.path("state/deletions")).map_or(0, Iterator::count)
    }

    /// The handles of these, in the order of the directory, by which the plugin goes too.
    fn handles_put_off(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.node.path("state/deletions")).unwrap();
        let attachments = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        attachments.map(|attachment| format!("handles/{attachment}")).collect()
    }

    /// Has a record be none that decodes. What it was.
    fn damage(&self, key: &str) -> Vec<u8> {
        self.overwrite(key, b"{}")
    }

    fn overwrite(&self, key: &str, value: &[u8]) -> Vec<u8> {
        let store = self.cluster.open();
        let before = store.get(key).unwrap().unwrap();
        store.update(key, value, before.revision).unwrap();
        before.value
    }

    fn assert_only(&self, pods: &[(&Pod<'_>, &Value)], context: &str) {
        let attached: Vec<_> = pods
            .iter()
            .map(|(pod, result)| {
                let ips = vec![address(result, true), address(result, false)];
                (pod.attachment("podnet", "eth0"), ips)
            })
            .collect();
        let store = Store::new(self.cluster.open());
        assert_only_attached_in(self.node, &store, &attached, context);
    }

    fn wait_until(&self, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.cluster.pid(0)).unwrap());
        rustix::process::kill_process(pid.unwrap(), signal).unwrap();
    }
}
