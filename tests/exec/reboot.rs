//! What a node is after a reboot or an upgrade of the plugin.

use std::fs;
use std::os::unix::fs::symlink;

use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{Invocation, Node};
use serde_json::json;

#[test]
fn the_first_verb_after_a_reboot_takes_back_what_the_pods_before_it_had() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.251.0.0/30"}, {"cidr": "fd00:10:251::/112"}]);
    let status = Invocation::new("margay", "STATUS", &network);
    let before = node.sandbox("before");
    let address_before = address(&before.add(&network), true);
    let (code, _) = status.execute().error();
    assert_eq!(code, 50, "the pool has one address to give");

    before.destroy();
    node.reboot();

    status.execute().success();
    assert_eq!(node.store().endpoints("podnet").unwrap(), []);
    let after = node.sandbox("after");
    assert_eq!(address(&after.add(&network), true), address_before);
    assert_ping(&after, node_address(true));
}

#[test]
fn a_first_verb_that_is_killed_anywhere_leaves_the_rest_to_the_second() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let status = Invocation::new("margay", "STATUS", &network);
    for changes in 0.. {
        for name in ["a", "b"] {
            let pod = node.sandbox(name);
            pod.add(&network);
            pod.destroy();
        }
        node.reboot();

        let killed = format!("change={changes}*off->1*return(kill)");
        let first = status.clone().env("FAILPOINTS", &killed).execute();
        status.execute().success();

        let store = node.store();
        assert_eq!(store.endpoints("podnet").unwrap(), [], "after {changes} changes");
        let handles = store.backend().list("handles/", None).unwrap();
        assert!(handles.is_empty(), "after {changes} changes: {handles:?}");
        if first.is_success() {
            assert!(changes > 4, "two endpoints, two handles and the boot are changes");
            return;
        }
    }
}

#[test]
fn margay_ipam_by_itself_takes_back_what_earlier_boots_left() {
    let Some(node) = Node::new() else { return };
    let network = json!({
        "cniVersion": "1.1.0",
        "name": "side",
        "type": "ptp",
        "ipam": {
            "type": "margay-ipam",
            "state_dir": node.path("state"),
            "pools": [{"cidr": "10.251.0.0/30"}],
        },
    });
    let add = |container_id: &str| {
        Invocation::new("margay-ipam", "ADD", &network)
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", "/nowhere/netns")
            .env("CNI_IFNAME", "eth0")
            .execute()
    };
    let address_before = address(&add("before").success(), true);
    let (code, _) = add("after").error();
    assert_eq!(code, 101, "the pool has one address to give");

    node.change_boot_id();

    assert_eq!(address(&add("after").success(), true), address_before);
}

#[test]
fn after_a_reboot_what_still_has_its_namespace_keeps_its_addresses() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let alive = node.sandbox("alive");
    let result = alive.add(&network);

    // As far as the plugin can tell: only the boot ID is another one.
    node.change_boot_id();

    let other = node.sandbox("other");
    assert_ne!(address(&other.add(&network), true), address(&result, true));
    assert!(alive.check(&network, &result).is_success());
    assert_ping(&other, address(&result, true));
}

#[test]
fn a_namespaces_path_that_leads_to_the_hosts_own_after_a_reboot_is_stale() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    // As /proc/PID/ns/net does once the number is another process's.
    let path = node.path("of-a-process");
    symlink(pod.netns_path(), &path).unwrap();
    let add = pod.invocation("ADD", &network).env("CNI_NETNS", path.to_str().unwrap());
    add.execute().success();
    pod.destroy();
    fs::remove_file(&path).unwrap();
    symlink("/proc/self/ns/net", &path).unwrap();

    node.reboot();
    Invocation::new("margay", "STATUS", &network).execute().success();

    assert_eq!(node.store().endpoints("podnet").unwrap(), []);
}

#[test]
fn pods_that_another_build_attached_stay_sound_and_can_be_deleted() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (old, new) = (node.sandbox("old"), node.sandbox("new"));
    let old_result = old.add(&network);

    // What this build has pinned becomes another build's.
    let builds = node.pins().join("progs");
    let build = fs::read_dir(&builds).unwrap().next().unwrap().unwrap().path();
    fs::rename(&build, builds.join("0123456789ab")).unwrap();

    let check = old.check(&network, &old_result);
    assert!(check.is_success(), "{}", check.stdout());
    let new_result = new.add(&network);
    assert!(build.exists(), "this build pins its own programs");
    assert_ping(&new, address(&old_result, true));
    assert_ping(&old, address(&new_result, false));
    old.del(&network);
    new.del(&network);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn del_does_without_any_program_of_its_own_build() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);
    let builds = node.pins().join("progs");
    let build = fs::read_dir(&builds).unwrap().next().unwrap().unwrap().path();
    fs::rename(&build, builds.join("0123456789ab")).unwrap();

    pod.del(&network);

    let pods = margay_datapath::Pods::open(&node.bpffs_root()).unwrap().expect("the maps");
    assert_eq!(pods.entries().unwrap().len(), 0);
    assert!(!build.exists(), "a DEL loads nothing");
}
