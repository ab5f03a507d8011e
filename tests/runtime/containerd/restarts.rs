//! What becomes of pods when something below them is replaced or ends: containerd, the plugin, the
//! node.

use std::{fs, thread};

use margay_tests::Node;
use margay_tests::traffic::{Connection, listen};
use margay_tests_runtime::{Containerd, PodSpec};
use serde_json::json;

use crate::{assert_only, assert_talk, four_at_a_time};

#[test]
fn pods_outlive_containerd_and_can_be_removed_by_the_next_one() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let [a, b] = ["a", "b"].map(|name| containerd.run(&PodSpec::new(name)).unwrap());
    let sleeping = a.start_container(&["sleep", "2147483647"]);
    let listener = listen(&b, (b.ip(false), 0).into());
    let target = listener.local_addr().unwrap();
    let connection = Connection::open(&a, target, &listener).unwrap();

    containerd.kill();

    connection.exchange().unwrap();
    assert_talk(&a, &b);
    containerd.launch();
    connection.exchange().unwrap();
    assert!(a.is_ready() && b.is_ready());
    assert_eq!(a.status_ips(), a.ips());
    assert_eq!(sleeping.exec(&["hostname"]).trim(), "a");
    let c = containerd.run(&PodSpec::new("c")).unwrap();
    assert_talk(&a, &c);
    assert_only(&node, [&a, &b, &c], "after the restart");
    for pod in [&a, &b, &c] {
        pod.stop().unwrap();
        pod.remove().unwrap();
    }
    assert_only(&node, [], "all are removed");
}

#[test]
fn after_a_reboot_all_pods_come_up_again_in_a_pool_with_no_address_to_spare() {
    let Some(node) = Node::new() else { return };
    // Five IPv4 addresses that a pod can have.
    let pools = json!([{"cidr": "10.251.0.0/29"}, {"cidr": "fd00:10:251::/125"}]);
    let containerd = Containerd::start(&node, Some(pools));
    let names = || ["a", "b", "c", "d", "e"].map(PodSpec::new).to_vec();
    let before = four_at_a_time(names(), |pod| containerd.run(&pod).unwrap());
    containerd.run(&PodSpec::new("f")).unwrap_err();
    assert_only(&node, &before, "before the reboot");

    containerd.reboot();
    containerd.launch();

    // kubelet removes what died with the node before or after it has made the pods anew.
    let (early, late) = before.split_at(2);
    for pod in early {
        assert!(!pod.is_ready());
        pod.stop().unwrap();
        pod.remove().unwrap();
    }
    let after = four_at_a_time(names(), |pod| containerd.run(&pod.attempt(1)).unwrap());
    for pod in late {
        pod.stop().unwrap();
        pod.remove().unwrap();
    }
    assert_only(&node, &after, "after the reboot");
    assert_talk(&after[0], &after[4]);
    four_at_a_time(after.iter().collect(), |pod| pod.remove().unwrap());
    assert_only(&node, [], "all are removed");
}

#[test]
fn the_plugin_can_be_replaced_while_pods_come_and_go() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let old = containerd.run(&PodSpec::new("old")).unwrap();
    let listener = listen(&old, (old.ip(true), 0).into());
    let target = listener.local_addr().unwrap();
    let young = containerd.run(&PodSpec::new("young")).unwrap();
    let connection = Connection::open(&young, target, &listener).unwrap();

    // What is pinned becomes another build's, as it is after an upgrade.
    let builds = node.pins().join("progs");
    let build = fs::read_dir(&builds).unwrap().next().unwrap().unwrap().path();
    fs::rename(&build, builds.join("0123456789ab")).unwrap();
    let come_and_go = |number: usize| {
        let passing = containerd.run(&PodSpec::new(&format!("passing-{number}"))).unwrap();
        passing.remove().unwrap();
        containerd.run(&PodSpec::new(&format!("staying-{number}"))).unwrap()
    };
    let pods = thread::scope(|scope| {
        let pods = scope.spawn(|| four_at_a_time((0..8).collect(), come_and_go));
        while !pods.is_finished() {
            containerd.replace_plugin("margay");
        }
        pods.join().unwrap()
    });

    connection.exchange().unwrap();
    assert_talk(&old, &young);
    assert_talk(&old, &pods[7]);
    assert_only(&node, pods.iter().chain([&old, &young]), "after the upgrade");
    four_at_a_time(pods.iter().chain([&old, &young]).collect(), |pod| pod.remove().unwrap());
    assert_only(&node, [], "all are removed");
}
