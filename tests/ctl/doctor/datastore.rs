//! Datastores that are not there, damaged, or out of reach.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use margay_datastore::Attachment;
use margay_datastore::testing::etcd::EtcdCluster;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::on_etcd;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Diagnosis, node_with_a_pod};

#[test]
fn a_node_that_never_had_a_pod_has_no_datastore_and_gets_none() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("datastore-absent", "margay.db");
    diagnosis.assert_only(&["datastore-absent"]);
    assert_eq!(diagnosis.code, 0);
    assert!(!node.path("state/margay.db").exists());
}

#[test]
fn a_datastore_that_is_none_or_cannot_be_used_is_named() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    let database = node.path("state/margay.db");

    fs::write(&database, "this is no database, whatever its name says".repeat(100)).unwrap();
    Diagnosis::of(&ctl).assert_found("datastore-damaged", "damaged");

    fs::remove_file(&database).unwrap();
    fs::create_dir(&database).unwrap();
    Diagnosis::of(&ctl).assert_found("datastore-unusable", "");
}

#[test]
fn a_record_that_does_not_decode_is_named_by_its_key() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let store = node.store();
    store.backend().create("nodes/other", b"{}").unwrap();
    store.backend().create("endpoints/podnet/torn/eth0", b"{\"attach").unwrap();

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("record-damaged", "nodes/other");
    diagnosis.assert_found("record-damaged", "endpoints/podnet/torn/eth0");
}

#[test]
fn an_etcd_that_does_not_answer_or_takes_its_time_is_named_and_so_is_what_was_put_off() {
    let Some(node) = Node::new() else { return };
    let mut cluster = EtcdCluster::start();
    let network = on_impatient_etcd(&node, &cluster);
    let pod = node.sandbox("a");
    pod.add(&network);
    let ctl = Ctl::new(&node, &network);

    signal(&cluster, Signal::STOP);
    let slow: Child = ctl.start(&["doctor", "-o", "json"]);
    // Longer than a second, and shorter than a request may take.
    thread::sleep(Duration::from_millis(1500));
    signal(&cluster, Signal::CONT);
    let output = slow.wait_with_output().unwrap();
    let slow: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids: Vec<_> = slow["findings"].as_array().unwrap().iter().map(|it| &it["id"]).collect();
    assert!(ids.contains(&&json!("datastore-slow")), "{ids:?}");

    cluster.kill(0);
    pod.del(&network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("datastore-out-of-reach", "not reachable");
    diagnosis.assert_found("deletions-put-off", "podnet/a/eth0");

    cluster.restart(0);
    let mended = Diagnosis::with(&ctl, &["--fix"]);
    assert!(
        mended.done().contains(&"removed 1 attachments whose DEL had been put off"),
        "{mended:#?}"
    );
    assert!(!mended.ids().contains(&"deletions-put-off"), "{mended:#?}");
    let attachment = Attachment::new("podnet", "a", "eth0").unwrap();
    let store = margay_datastore::Store::new(cluster.open());
    assert!(store.endpoint(&attachment).unwrap().is_none());
}

/// Nobody here wants to wait for what will not come.
fn on_impatient_etcd(node: &Node, cluster: &EtcdCluster) -> Value {
    let mut network = on_etcd(node.network(), cluster);
    network["etcd_connect_timeout_ms"] = json!(1000);
    network["etcd_verb_timeout_ms"] = json!(3000);
    network
}

fn signal(cluster: &EtcdCluster, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(cluster.pid(0)).unwrap());
    kill_process(pid.unwrap(), signal).unwrap();
}
