//! CHECK notices whatever was changed since the ADD, and names it.

use margay_abi::Counter;
use margay_tests::pod::address;
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

#[test]
fn check_names_each_thing_that_is_off() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    type Sabotage = fn(&Node, &Pod<'_>, &str, &Value);
    let cases: [(&str, &str, Sabotage); 12] = [
        ("address", "lacks address", |_, pod, _, result| {
            let address = format!("{}/32", address(result, true));
            pod.run(&["ip", "addr", "del", &address, "dev", "eth0"]);
        }),
        ("default", "pod lacks route 0.0.0.0/0", |_, pod, _, _| {
            pod.run(&["ip", "route", "del", "default"]);
        }),
        ("default6", "pod lacks route ::/0", |_, pod, _, _| {
            pod.run(&["ip", "-6", "route", "del", "default"]);
        }),
        ("mtu", "MTU", |_, pod, _, _| {
            pod.run(&["ip", "link", "set", "eth0", "mtu", "1280"]);
        }),
        ("mac", "MAC address", |_, pod, _, _| {
            pod.run(&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"]);
        }),
        ("link", "does not exist", |node, _, veth, _| {
            node.run(&["ip", "link", "del", veth]);
        }),
        ("route", "host lacks route", |node, _, _, result| {
            let address = format!("{}/32", address(result, true));
            node.run(&["ip", "route", "del", &address]);
        }),
        ("neighbour", "neighbour", |node, _, veth, result| {
            let address = address(result, true).to_string();
            node.run(&["ip", "neigh", "del", &address, "dev", veth]);
        }),
        ("sysctl", "proxy_arp", |_, _, veth, _| {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{veth}/proxy_arp"), "1").unwrap();
        }),
        ("filter", "from_pod is not attached", |node, _, veth, _| {
            node.run(&["tc", "filter", "del", "dev", veth, "ingress"]);
        }),
        ("entry", "map entry", |node, _, _, result| {
            node.datapath().pods().remove(address(result, false)).unwrap();
        }),
        ("endpoint", "no endpoint", |node, pod, _, _| {
            let store = node.store();
            assert!(
                store
                    .delete_endpoint(&pod.attachment("podnet", "eth0"), "node-under-test")
                    .unwrap()
            );
        }),
    ];
    for (name, expected, sabotage) in cases {
        let pod = node.sandbox(name);
        let result = pod.add(&network);
        let veth = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let sound = pod.check(&network, &result);
        assert!(sound.is_success(), "{name}: {}", sound.stdout());

        sabotage(&node, &pod, &veth, &result);

        let (code, message) = pod.check(&network, &result).error();
        assert!(code == 104 || code == 3, "{name}: {code} {message}");
        assert!(message.contains(expected), "{name}: {message}");
        pod.del(&network);
    }
    assert_eq!(node.pod_links(), []);
}

#[test]
fn check_notices_an_allocation_that_is_gone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let store = node.store();
    let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
    ipam.release(&pod.attachment("podnet", "eth0")).unwrap();

    let (code, message) = pod.check(&network, &result).error();

    assert_eq!(code, 104, "{message}");
    assert!(message.contains(&address(&result, true).to_string()), "{message}");
}

#[test]
fn check_names_everything_that_is_off_at_once() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["container_settings"] = json!({"allow_ip_forwarding": true});
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    pod.run(&["ip", "link", "set", "eth0", "mtu", "1300"]);
    pod.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    let store = node.store();
    let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
    ipam.release(&pod.attachment("podnet", "eth0")).unwrap();

    let (code, message) = pod.check(&network, &result).error();

    assert_eq!(code, 104, "{message}");
    for finding in ["MTU 1300", "pod sysctl net/ipv4/ip_forward is 0", "holds []"] {
        assert!(message.contains(finding), "no {finding}: {message}");
    }
}

#[test]
fn check_allows_for_what_a_later_plugin_of_the_chain_changed_and_says_so() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let mut result = pod.add(&network);

    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "egress0"}));
    result["ips"].as_array_mut().unwrap().push(json!({"address": "10.9.9.9/32", "interface": 2}));
    result["routes"].as_array_mut().unwrap().retain(|route| route["dst"] != "0.0.0.0/0");
    pod.run(&["ip", "route", "del", "default"]);

    let output = pod.check(&network, &result);
    assert!(output.is_success(), "{}", output.stdout());
    pod.run(&["ip", "-6", "route", "del", "default"]);
    let (_, message) = pod.check(&network, &result).error();
    assert!(message.contains("pod lacks route ::/0"), "{message}");
}

#[test]
fn check_looks_at_the_routes_of_a_second_interface() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let pod = node.sandbox("a");
    let net1 = |verb: &str, network: &Value| {
        pod.invocation(verb, network).env("CNI_IFNAME", "net1").execute()
    };
    let result = net1("ADD", &network).success();
    pod.run(&["ip", "route", "del", "10.244.0.0/24"]);

    for known in [Value::Null, result] {
        network["prevResult"] = known;
        let (code, message) = net1("CHECK", &network).error();
        assert_eq!(code, 104, "{message}");
        assert!(message.contains("pod lacks route 10.244.0.0/24"), "{message}");
    }
}

#[test]
fn check_changes_nothing_and_counts_no_packet() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let state = || {
        let entries = node.datapath().pods().entries().unwrap();
        (node.pod_links(), entries, node.packets(Counter::DirectV4))
    };
    let before = state();

    for _ in 0..3 {
        assert!(pod.check(&network, &result).is_success());
    }

    assert_eq!(state(), before);
}
