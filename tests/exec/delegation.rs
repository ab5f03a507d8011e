//! Other IPAM plugins under margay, and margay-ipam under other plugins.

use margay_tests::node::{node_address, plugin_directory, reference_plugin_directory};
use margay_tests::pod::address;
use margay_tests::traffic::{answers_ping, assert_ping, assert_tcp};
use margay_tests::{Invocation, Node, Pod};
use serde_json::{Value, json};

use crate::concurrency::wait_until;

#[test]
fn host_local_gives_the_addresses_and_takes_them_back() {
    let Some(node) = Node::new() else { return };
    let mut network = reference_network(&node);
    network["ipam"] = json!({
        "type": "host-local",
        "dataDir": node.path("state/host-local"),
        "ranges": [[{"subnet": "10.249.0.0/24"}], [{"subnet": "fd00:10:249::/112"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));

    let result_a = execute(&a, "ADD", &network).success();
    let result_b = execute(&b, "ADD", &network).success();

    for ipv4 in [true, false] {
        assert_ping(&a, address(&result_b, ipv4));
        assert_tcp(&b, &a, address(&result_a, ipv4));
        assert_ping(&a, node_address(ipv4));
    }
    let reserved = node.path("state/host-local/podnet").join(address(&result_a, true).to_string());
    assert!(reserved.exists());
    let mut with_result = network.clone();
    with_result["prevResult"] = result_a;
    let check = execute(&a, "CHECK", &with_result);
    assert!(check.is_success(), "{}", check.stdout());

    execute(&a, "DEL", &network).success();
    execute(&a, "DEL", &network).success();
    assert!(!reserved.exists());
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn static_gives_the_addresses_of_the_configuration() {
    let Some(node) = Node::new() else { return };
    let mut network = reference_network(&node);
    network["ipam"] = json!({
        "type": "static",
        "addresses": [{"address": "10.250.0.7/24"}, {"address": "fd00:10:250::7/64"}],
    });
    let pod = node.sandbox("a");

    let result = execute(&pod, "ADD", &network).success();

    assert_eq!(address(&result, true).to_string(), "10.250.0.7");
    assert_eq!(result["ips"][0]["address"], "10.250.0.7/32");
    assert_ping(&node, address(&result, true));
    assert_ping(&pod, node_address(false));
    execute(&pod, "DEL", &network).success();
}

#[test]
fn an_add_that_fails_after_a_delegated_plugin_gave_addresses_gives_them_back() {
    let Some(node) = Node::new() else { return };
    let mut network = reference_network(&node);
    network["ipam"] = json!({
        "type": "host-local",
        "dataDir": node.path("state/host-local"),
        "ranges": [[{"subnet": "10.249.0.0/24"}]],
    });
    let pod = node.sandbox("a");
    let add = pod
        .invocation("ADD", &network)
        .env("CNI_PATH", reference_plugin_directory().to_str().unwrap());

    let (code, _) = add.env("FAILPOINTS", "veth=return").execute().error();

    assert_eq!(code, 199);
    let files = std::fs::read_dir(node.path("state/host-local/podnet")).unwrap();
    let names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with("10.249")), "{names:?}");
}

#[test]
fn an_error_of_a_delegated_plugin_keeps_its_code_and_names_the_plugin() {
    let Some(node) = Node::new() else { return };
    let mut network = reference_network(&node);
    network["ipam"] = json!({"type": "host-local", "ranges": [[{"subnet": "nonsense"}]]});
    let pod = node.sandbox("a");

    let (_, message) = execute(&pod, "ADD", &network).error();
    assert!(message.contains("host-local") && message.contains("nonsense"), "{message}");

    network["ipam"] = json!({"type": "no-such-ipam"});
    let (code, message) = execute(&pod, "ADD", &network).error();
    assert_eq!(code, 105, "{message}");
    assert!(message.contains("no-such-ipam") && message.contains("CNI_PATH"), "{message}");
    assert_eq!(node.pod_links(), []);
}

#[test]
fn margay_ipam_serves_the_reference_plugins_ptp_and_bridge() {
    let Some(node) = Node::new() else { return };
    for plugin in ["ptp", "bridge"] {
        let mut network = reference_network(&node);
        for key in ["log_level", "nodename", "state_dir", "run_dir", "bpffs_root"] {
            network.as_object_mut().unwrap().remove(key);
        }
        network["type"] = json!(plugin);
        network["ipam"]["state_dir"] = json!(node.path("state"));
        if plugin == "bridge" {
            network["bridge"] = json!("br0");
            network["isDefaultGateway"] = json!(true);
        }
        let run = |pod: &Pod<'_>, verb: &str, config: &Value| {
            let reference = reference_plugin_directory();
            let path = format!("{}:{}", reference.display(), plugin_directory().display());
            Invocation::new(reference.join(plugin).to_str().unwrap(), verb, config)
                .env("CNI_CONTAINERID", pod.container_id())
                .env("CNI_NETNS", pod.netns_path().to_str().unwrap())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", &path)
                .execute()
        };
        let (a, b) = (node.sandbox(&format!("{plugin}-a")), node.sandbox(&format!("{plugin}-b")));

        let result_a = run(&a, "ADD", &network).success();
        let result_b = run(&b, "ADD", &network).success();

        assert_ping(&node, address(&result_a, true));
        assert_ping(&a, address(&result_b, true));
        // Those plugins do not wait until IPv6 addresses have been found to be nobody else's.
        let ipv6 = address(&result_b, false);
        wait_until("the IPv6 address can be used", || answers_ping(&a, ipv6));
        assert_ping(&a, "10.244.0.1".parse().unwrap());
        let mut with_result = network.clone();
        with_result["prevResult"] = result_a;
        run(&a, "CHECK", &with_result).success();
        run(&a, "DEL", &network).success();
        run(&b, "DEL", &network).success();
        let store = node.store();
        let ipam = margay_datastore::Ipam::new(&store, "any", "any");
        assert_eq!(ipam.attachments("podnet").unwrap(), []);
    }
}

/// The network in the newest version that the reference plugins of Debian 12 speak.
fn reference_network(node: &Node) -> Value {
    let mut network = node.network();
    network["cniVersion"] = json!("1.0.0");
    network
}

fn execute(pod: &Pod<'_>, verb: &str, config: &Value) -> margay_tests::CniOutput {
    pod.invocation(verb, config)
        .env("CNI_PATH", reference_plugin_directory().to_str().unwrap())
        .execute()
}
