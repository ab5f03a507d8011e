//! An ADD that fails leaves nothing behind, whichever step it fails at.

use margay_tests::residue::assert_only;
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

#[test]
fn an_add_that_was_killed_before_its_first_address_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let killed = pod.invocation("ADD", &network).env("FAILPOINTS", "veth=return(kill)").execute();
    assert!(!killed.is_success() && killed.stdout().is_empty(), "it was not killed");
    // The assignment is declared in the handle before the first block is written.
    let store = node.store();
    for block in store.backend().list("blocks/", None).unwrap() {
        store.backend().delete(&block.key, None).unwrap();
    }

    let result = pod.add(&network);

    assert_only(&node, &[(&pod, &result)], "declared");
}

#[test]
fn what_a_pod_asks_for_is_never_in_the_way_of_its_del() {
    let Some(node) = Node::new() else { return };
    for (key, value) in [
        ("runtimeConfig", json!({"ips": ["10.244.0.5x"]})),
        ("runtimeConfig", json!({"mac": "nonsense"})),
        ("args", json!({"cni": {"labels": [{"value": "no key"}]}})),
    ] {
        let mut network = node.network();
        network[key] = value;
        let pod = node.sandbox("a");
        let (code, message) = pod.invocation("ADD", &network).execute().error();
        assert_eq!(code, 7, "{message}");

        pod.del(&network);

        pod.destroy();
    }
}

#[test]
fn a_name_that_is_taken_in_the_pod_is_an_error_that_leaves_it_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "mine"]);

    let (code, message) = pod.invocation("ADD", &network).execute().error();

    assert!(code >= 100, "{code}");
    assert!(message.contains("eth0"), "{message}");
    let mine = pod.netlink(async |netlink| netlink.link_by_name("mine").await.unwrap());
    assert!(mine.is_some(), "somebody else's interface is gone");
    assert_only(&node, &[], "taken name");
}

#[test]
fn a_link_of_somebody_else_by_the_host_veths_name_is_never_touched() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let name = margay::naming::host_veth(&pod.attachment("podnet", "eth0"));
    node.run(&["ip", "link", "add", &name, "type", "veth", "peer", "name", "other-end"]);
    node.run(&["ip", "link", "set", &name, "alias", "rack uplink"]);

    let (code, message) = pod.invocation("ADD", &network).execute().error();
    pod.del(&network);

    assert!(code >= 100, "{code}");
    assert!(message.contains(&name) && message.contains("rack uplink"), "{message}");
    assert!(node.pod_links().iter().any(|link| link.name == name), "it is gone");
}

#[test]
fn a_pool_that_is_used_up_is_an_error_that_names_it_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.247.0.0/30"}, {"cidr": "fd00:10:247::/112"}]);
    let mut pods: Vec<(Pod<'_>, Value)> = Vec::new();
    let error = loop {
        let pod = node.sandbox(&format!("pod{}", pods.len()));
        let output = pod.invocation("ADD", &network).execute();
        if !output.is_success() {
            break output.error();
        }
        pods.push((pod, output.success()));
        assert!(pods.len() <= 4, "more pods than addresses");
    };

    assert_eq!(error.0, 101, "{}", error.1);
    assert!(error.1.contains("10.247.0.0/30"), "{}", error.1);
    let live: Vec<_> = pods.iter().map(|(pod, result)| (pod, result)).collect();
    assert_only(&node, &live, "used up");
}

#[test]
fn a_full_map_is_an_error_that_names_it_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["max_pods"] = json!(2);
    let pods: Vec<_> = (0..2)
        .map(|number| {
            let pod = node.sandbox(&format!("pod{number}"));
            let result = pod.add(&network);
            (pod, result)
        })
        .collect();
    let third = node.sandbox("third");

    let (code, message) = third.invocation("ADD", &network).execute().error();

    assert_eq!(code, 102, "{message}");
    assert!(message.contains("pods_v4"), "{message}");
    let live: Vec<_> = pods.iter().map(|(pod, result)| (pod, result)).collect();
    assert_only(&node, &live, "full map");
}
