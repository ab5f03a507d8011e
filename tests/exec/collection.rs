//! GC: what no valid attachment has is taken away, what one has stays.

use margay_abi::PodInfo;
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Node, Pod};
use serde_json::{Value, json};

#[test]
fn gc_takes_away_what_is_not_in_the_list_and_leaves_the_rest() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (kept, dropped) = (node.sandbox("kept"), node.sandbox("dropped"));
    let kept_result = kept.add(&network);
    let dropped_result = dropped.add(&network);

    let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
    gc(&kept, &network, &valid).success();

    assert_eq!(node.pod_links().len(), 1);
    let entries = node.datapath().pods().entries().unwrap();
    assert!(!entries.contains_key(&address(&dropped_result, true)));
    assert!(!entries.contains_key(&address(&dropped_result, false)));
    assert_ping(&kept, node_address(true));
    assert!(kept.check(&network, &kept_result).is_success());
    let (code, _) = dropped.check(&network, &dropped_result).error();
    assert_eq!(code, 3);
}

#[test]
fn gc_finds_what_a_sandbox_that_vanished_left_behind() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (caller, vanished) = (node.sandbox("caller"), node.sandbox("vanished"));
    let result = vanished.add(&network);
    vanished.destroy();

    gc(&caller, &network, &json!([])).success();

    let datapath = node.datapath();
    assert_eq!(datapath.pods().entries().unwrap().len(), 0);
    let pod = node.sandbox("next");
    let mut wanted = network.clone();
    wanted["runtimeConfig"] = json!({"ips": [address(&result, true)]});
    let next = pod.add(&wanted);
    assert_eq!(address(&next, true), address(&result, true), "the address is free again");
}

#[test]
fn gc_gives_no_address_back_while_its_link_is_there() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let mut collected = network.clone();
    collected["cni.dev/valid-attachments"] = json!([]);
    for changes in 0.. {
        pod.add(&network);

        let refused = format!("change={changes}*off->1*return(16)");
        let gc = pod.invocation("GC", &collected).env("FAILPOINTS", &refused).execute();

        let handles = node.store().backend().list("handles/", None).unwrap();
        let links = node.pod_links();
        assert!(links.is_empty() || !handles.is_empty(), "after {changes} changes: {links:?}");
        if gc.is_success() {
            assert!(changes > 3, "entries, link and records are changes");
            return;
        }
        pod.invocation("GC", &collected).execute().success();
        assert_eq!(node.pod_links(), []);
    }
}

#[test]
fn gc_takes_away_what_it_can_of_the_map_entries_that_nobody_has() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let caller = node.sandbox("caller");
    caller.add(&network);
    let entries = || node.datapath().pods().entries().unwrap();
    let known = *entries().values().next().unwrap();
    caller.del(&network);
    for last in 1..=3 {
        let orphan = PodInfo { ifindex: 0x00ff_ffff, ..known };
        node.datapath().pods().insert([10, 99, 0, last].into(), &orphan).unwrap();
    }
    let mut collected = network.clone();
    collected["cni.dev/valid-attachments"] = json!([]);

    let refused = caller.invocation("GC", &collected).env("FAILPOINTS", "entry=1*return(12)");
    let (code, message) = refused.execute().error();

    assert_eq!(code, 102, "{message}");
    assert_eq!(entries().len(), 1, "{:?}", entries());
    gc(&caller, &network, &json!([])).success();
    assert_eq!(entries().len(), 0);
}

#[test]
fn gc_leaves_other_networks_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let mut other = node.network();
    other["name"] = json!("othernet");
    let pod = node.sandbox("a");
    let result = pod.add(&other);

    gc(&pod, &network, &json!([])).success();

    assert!(pod.check(&other, &result).is_success());
    assert_ping(&pod, node_address(false));
}

#[test]
fn gc_without_a_list_is_an_error() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);

    let (code, message) = pod.invocation("GC", &network).execute().error();

    assert_eq!(code, 7, "{message}");
    assert!(message.contains("valid-attachments"), "{message}");
    assert_eq!(node.pod_links().len(), 1);
}

fn gc(caller: &Pod<'_>, network: &Value, valid: &Value) -> CniOutput {
    let mut config = network.clone();
    config["cni.dev/valid-attachments"] = valid.clone();
    caller.invocation("GC", &config).execute()
}
