//! margay in a list with the reference plugins, each handed the result of the one before.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use margay_tests::pod::address;
use margay_tests::residue::assert_only;
use margay_tests::{Conflist, Node};
use serde_json::{Value, json};

#[test]
fn a_chain_behind_margay_adds_checks_and_deletes_in_every_version() {
    let Some(node) = Node::new() else { return };
    let list = full_chain(&node);
    let versions = list.versions();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        assert!(versions.iter().any(|spoken| spoken == version), "{version} of {versions:?}");
    }
    for version in versions {
        let list = list.clone().version(&version);
        let pod = node.sandbox(&format!("v{version}"));

        let result = list.add(&pod).success();

        assert_eq!(result["cniVersion"], json!(version));
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces[1]["name"], "eth0", "{version}");
        assert_eq!(interfaces.len(), 3, "{version}: the bandwidth plugin's is behind ours");
        assert_eq!(node.pod_links().len(), 2, "{version}: host veth and ifb");
        assert!(port_rules(&node).contains(&address(&result, true).to_string()), "{version}");
        if version != "0.3.1" {
            let check = without_portmap(list.clone()).check(&pod, &result);
            assert!(check.is_success(), "{version}: {}", check.stdout());
        }

        list.del(&pod, Some(&result)).success();

        assert_only(&node, &[], &version);
        assert!(!port_rules(&node).contains("8080"), "{version}: {}", port_rules(&node));
        list.del(&pod, Some(&result)).success();
    }
}

#[test]
fn a_chain_is_deleted_after_its_sandbox_is_gone() {
    let Some(node) = Node::new() else { return };
    let list = full_chain(&node);
    let pod = node.sandbox("gone");
    let result = list.add(&pod).success();

    let deletions = list.deletions(&pod, Some(&result));
    pod.destroy();
    for deletion in deletions {
        deletion.execute().success();
    }

    assert_only(&node, &[], "gone");
    assert!(!port_rules(&node).contains("8080"), "{}", port_rules(&node));
}

#[test]
fn a_chain_whose_last_plugin_fails_is_deleted_without_a_result() {
    let Some(node) = Node::new() else { return };
    let list = full_chain(&node).then(tuning(&node, json!({"sysctl": {"net.no.such": "1"}})));
    let pod = node.sandbox("a");

    let (_, message) = list.add(&pod).error();
    assert!(message.contains("no/such"), "{message}");
    // The runtime keeps no result of an ADD that failed.
    list.del(&pod, None).success();

    assert_only(&node, &[], "failed");
    assert!(!port_rules(&node).contains("8080"), "{}", port_rules(&node));
    let result = full_chain(&node).add(&pod).success();
    full_chain(&node).del(&pod, Some(&result)).success();
}

#[test]
fn check_of_a_chain_names_what_is_off_with_each_of_its_plugins() {
    let Some(node) = Node::new() else { return };
    let list = full_chain(&node);
    let checked = without_portmap(list.clone());
    let pod = node.sandbox("a");
    let result = list.add(&pod).success();
    checked.check(&pod, &result).success();

    let setting = "net/ipv4/conf/eth0/accept_redirects";
    pod.enter(|| fs::write(format!("/proc/sys/{setting}"), "1").unwrap());
    let (_, message) = checked.check(&pod, &result).error();
    assert!(message.contains("accept_redirects"), "tuning is asked after margay: {message}");

    pod.run(&["ip", "route", "del", "default"]);
    let (code, message) = checked.check(&pod, &result).error();
    assert_eq!(code, 104, "{message}");
    assert!(message.contains("pod lacks route 0.0.0.0/0"), "{message}");
}

#[test]
fn margay_between_real_plugins_hands_on_and_is_content_with_what_they_did() {
    let Some(node) = Node::new() else { return };
    let setting = "net/ipv4/conf/eth0/accept_redirects";
    let sysctl = json!({"sysctl": {setting.replace('/', "."): "0", "net.ipv4.ip_forward": "1"}});
    let list = Conflist::of(&network(&node))
        .after(json!({"type": "loopback"}))
        .then(tuning(&node, sysctl));
    for version in list.versions() {
        let list = list.clone().version(&version);
        let pod = node.sandbox(&format!("v{version}"));

        let result = list.add(&pod).success();

        let named = |index: usize| result["interfaces"][index]["name"].clone();
        assert_eq!((named(0), named(2)), (json!("lo"), json!("eth0")), "{version}");
        for ip in result["ips"].as_array().unwrap() {
            let is_loopback = ip["address"].as_str().unwrap().contains("127.0.0.1")
                || ip["address"].as_str().unwrap().starts_with("::1");
            assert_eq!(ip["interface"], json!(if is_loopback { 0 } else { 2 }), "{version}: {ip}");
        }
        let set = pod.enter(|| fs::read_to_string(format!("/proc/sys/{setting}")).unwrap());
        assert_eq!(set.trim(), "0");
        if version != "0.3.1" {
            let check = list.check(&pod, &result);
            assert!(check.is_success(), "{version}: {}", check.stdout());
        }
        list.del(&pod, Some(&result)).success();
        assert_only(&node, &[], &version);
    }
}

#[test]
fn status_and_gc_go_through_a_chain_of_the_newest_version() {
    let Some(node) = Node::new() else { return };
    let plugins = node.path("plugins");
    fs::create_dir(&plugins).unwrap();
    let list = Conflist::of(&node.network()).directory(&plugins).then(scripted(&node));
    let (kept, stale) = (node.sandbox("kept"), node.sandbox("stale"));
    let result = list.add(&kept).success();
    list.add(&stale).success();
    list.check(&kept, &result).success();

    list.status().success();
    list.gc(&[&kept]).success();

    assert_only(&node, &[(&kept, &result)], "after GC");
    list.del(&kept, Some(&result)).success();
    assert_only(&node, &[], "after DEL");
    let diary = fs::read_to_string(node.path("plugins/diary")).unwrap();
    let asked: Vec<&str> = diary.lines().collect();
    assert_eq!(asked, ["ADD kept", "ADD stale", "CHECK kept", "STATUS ", "GC ", "DEL kept"]);
}

/// margay, host ports, limits, and a sysctl.
fn full_chain(node: &Node) -> Conflist {
    let rates = json!({"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                       "egressRate": 8_000_000, "egressBurst": 8_000_000});
    Conflist::of(&network(node))
        .then(json!({"type": "portmap", "capabilities": {"portMappings": true}}))
        .then(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}))
        .then(tuning(node, json!({"sysctl": {"net.ipv4.conf.eth0.accept_redirects": "0"}})))
        .runtime(
            "portMappings",
            json!([{"hostPort": 30080, "containerPort": 8080, "protocol": "tcp"}]),
        )
        .runtime("bandwidth", rates)
}

/// What can be checked. portmap 1.1.1 looks for the rules of a pod's IPv4 address in `ip6tables` too
/// (known upstream), so its CHECK always fails.
fn without_portmap(list: Conflist) -> Conflist {
    list.without("portmap")
}

/// margay's configuration, with the ingress qdisc left to the bandwidth plugin.
fn network(node: &Node) -> Value {
    let mut network = node.network();
    network["cniVersion"] = json!("1.0.0");
    network["attach"] = json!("tcx");
    network
}

fn tuning(node: &Node, mut settings: Value) -> Value {
    settings["type"] = json!("tuning");
    settings["dataDir"] = json!(node.path("state/tuning"));
    settings
}

/// A plugin that hands results on and writes down what it is asked.
fn scripted(node: &Node) -> Value {
    let plugin = node.path("plugins/scripted");
    let script = format!(
        r#"#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID" >> {}
[ "$CNI_COMMAND" != ADD ] || printf '%s' "$config" | sed 's/.*"prevResult":\(.*\),"type":.*/\1/'
"#,
        node.path("plugins/diary").display()
    );
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    json!({"type": "scripted"})
}

/// What portmap has made.
fn port_rules(node: &Node) -> String {
    ["iptables", "ip6tables"].map(|program| node.run(&[program, "-t", "nat", "-S"])).concat()
}
