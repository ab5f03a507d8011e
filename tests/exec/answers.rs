//! What the network plugin answers: versions, shapes, errors that name the variable or the key.

use std::fs::{self, File};
use std::process::{Command, ExitStatus, Stdio};

use margay_tests::node::plugin_directory;
use margay_tests::{Invocation, Node, Pod};
use serde_json::{Value, json};

#[test]
fn version_lists_what_is_supported() {
    for (asked, answered) in [("1.1.0", "1.1.0"), ("0.4.0", "0.4.0"), ("9.0.0", "1.1.0")] {
        let version = Invocation::new("margay", "VERSION", &json!({"cniVersion": asked}));

        let answer = version.execute().success();

        assert_eq!(answer["cniVersion"], answered);
        assert_eq!(answer["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn every_version_gets_the_result_in_its_own_layout() {
    let Some(node) = Node::new() else { return };
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut network = node.network();
        network["cniVersion"] = json!(version);
        let pod = node.sandbox(&format!("v{version}"));

        let result = pod.add(&network);

        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        let ips = result["ips"].as_array().unwrap();
        assert_eq!(ips.len(), 2, "{version}");
        let family = |ip: &Value| ip.get("version").cloned();
        if version.starts_with('0') {
            assert_eq!(family(&ips[0]), Some(json!("4")), "{version}");
            assert_eq!(family(&ips[1]), Some(json!("6")), "{version}");
        } else {
            assert_eq!(family(&ips[0]), None, "{version}");
        }
        if version != "0.3.1" {
            let output = pod.check(&network, &result);
            assert!(output.is_success(), "{version}: {}", output.stdout());
        }
        pod.del(&network);
    }
}

#[test]
fn the_result_of_the_plugins_before_is_handed_on() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let mut network = node.network();
    let before = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "first0", "mac": "02:00:00:00:00:01", "sandbox": "/x"}],
        "ips": [{"address": "10.7.7.7/24", "interface": 0}],
        "routes": [{"dst": "10.7.0.0/16"}],
        "dns": {"nameservers": ["10.7.7.53"]},
    });
    network["prevResult"] = before.clone();

    let result = pod.add(&network);

    for list in ["interfaces", "ips", "routes"] {
        assert_eq!(result[list][0], before[list][0], "{list}");
        assert_eq!(result[list].as_array().unwrap().len(), 3, "{list}");
    }
    let index = result["ips"][1]["interface"].as_u64().unwrap();
    assert_eq!(result["interfaces"][usize::try_from(index).unwrap()]["name"], "eth0");
    assert_eq!(result["dns"], before["dns"]);
    assert!(pod.check(&network, &result).is_success());
}

#[test]
fn a_verb_that_a_version_lacks_is_an_error_of_code_1() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let mut network = node.network();
    for (version, verb) in [("0.3.1", "CHECK"), ("1.0.0", "STATUS"), ("1.0.0", "GC")] {
        network["cniVersion"] = json!(version);
        let (code, message) = pod.invocation(verb, &network).execute().error();
        assert_eq!(code, 1, "{message}");
    }
    for version in ["0.2.0", "2.0.0"] {
        network["cniVersion"] = json!(version);
        let (code, message) = pod.invocation("ADD", &network).execute().error();
        assert_eq!(code, 1, "{message}");
        assert!(message.contains(version), "{message}");
    }
}

#[test]
fn a_missing_variable_is_named() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();
    for (verb, variable) in [
        ("ADD", "CNI_CONTAINERID"),
        ("ADD", "CNI_NETNS"),
        ("ADD", "CNI_IFNAME"),
        ("CHECK", "CNI_NETNS"),
        ("DEL", "CNI_CONTAINERID"),
        ("DEL", "CNI_IFNAME"),
    ] {
        let output = pod.invocation(verb, &network).without_env(variable).execute();
        let (code, message) = output.error();
        assert_eq!(code, 4, "{verb} without {variable}: {message}");
        assert!(message.contains(variable), "{message}");
    }
}

#[test]
fn a_bad_value_of_a_variable_is_named() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();
    for (variable, value) in [
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_IFNAME", "a-name-too-long-for-linux"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_NETNS", "/nonexistent"),
        ("CNI_NETNS", "/etc/passwd"),
        ("CNI_ARGS", "no-equals-sign"),
        ("CNI_COMMAND", "ADDD"),
    ] {
        let (code, message) =
            pod.invocation("ADD", &network).env(variable, value).execute().error();
        assert_eq!(code, 4, "{variable}={value}: {message}");
        assert!(message.contains(variable), "{message}");
        assert!(message.contains(value), "{message}");
    }
    assert_eq!(node.pod_links(), []);
}

#[test]
fn the_hosts_own_namespace_is_refused_before_anything_happens() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();

    // The plugin starts in the node's namespace, so that is what this path means to it.
    let add = pod.invocation("ADD", &network).env("CNI_NETNS", "/proc/self/ns/net");
    let (code, message) = add.execute().error();

    assert_eq!(code, 4, "{message}");
    assert!(message.contains("CNI_NETNS"), "{message}");
    assert_eq!(node.pod_links(), []);
    assert!(!node.path("state/margay.db").exists());
}

#[test]
fn a_bad_configuration_is_an_error_that_names_the_key_and_touches_nothing() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    type Change = fn(&mut Value);
    let changes: [(Change, u64, &str); 9] = [
        (|network| network["mtuu"] = json!(1400), 7, "mtuu"),
        (|network| network["mtu"] = json!("large"), 7, "mtu"),
        (|network| network["mtu"] = json!(-1), 7, "mtu"),
        (|network| network["dataplane"] = json!("xdp"), 7, "dataplane"),
        (|network| network["ipam"]["pools"][0]["cidr"] = json!("10.244.0.0/99"), 7, "cidr"),
        (|network| network["ipam"]["pools"] = json!([]), 7, "pools"),
        (|network| network["etcd_endpoints"] = json!("http://10.0.0.1"), 7, "etcd_endpoints"),
        (|network| network["name"] = json!("../net"), 7, "name"),
        (|network| network["ipam"] = json!(null), 7, "ipam"),
    ];
    for (change, wanted, key) in changes {
        let mut network = node.network();
        change(&mut network);
        let (code, message) = pod.invocation("ADD", &network).execute().error();
        assert_eq!(code, wanted, "{key}: {message}");
        assert!(message.contains(key), "{message}");
    }
    assert_eq!(node.pod_links(), []);
    assert!(!node.path("state/margay.db").exists());
}

#[test]
fn an_unknown_key_is_told_with_its_nearest_neighbour() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["datplane"] = json!("ebpf");

    let (_, message) = node.sandbox("a").invocation("ADD", &network).execute().error();

    assert!(message.contains("\"dataplane\"") || message.contains("dataplane"), "{message}");
}

#[test]
fn no_truncation_of_the_configuration_makes_it_panic() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let whole = node.network().to_string();
    for length in (0..whole.len()).step_by(7) {
        let output =
            pod.invocation("ADD", &node.network()).stdin(&whole.as_bytes()[..length]).execute();
        let (code, message) = output.error();
        assert!([1, 6, 7].contains(&code), "{length} bytes: {code} {message}");
        assert!(!output.stderr().contains("panicked"), "{}", output.stderr());
    }
}

#[test]
fn status_says_whether_an_add_could_succeed() {
    let Some(node) = Node::new() else { return };
    let status = |network: &Value| Invocation::new("margay", "STATUS", network).execute();
    let network = node.network();
    status(&network).success();

    let mut unpinnable = network.clone();
    unpinnable["bpffs_root"] = json!(node.path("state/not-bpffs"));
    let (code, message) = status(&unpinnable).error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("not-bpffs"), "{message}");

    let mut small = network;
    small["ipam"]["pools"] = json!([{"cidr": "10.248.0.0/32"}]);
    let pod: Pod<'_> = node.sandbox("a");
    status(&small).success();
    pod.add(&small);
    let (code, message) = status(&small).error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("10.248.0.0/32"), "{message}");
}

#[test]
fn the_arguments_of_kubernetes_end_up_in_the_endpoint() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=1-2-3;\
                K8S_POD_INFRA_CONTAINER_ID=a;SOMETHING=else";

    pod.invocation("ADD", &node.network()).env("CNI_ARGS", args).execute().success();

    let store = node.store();
    let endpoint = store.endpoint(&pod.attachment("podnet", "eth0")).unwrap().unwrap();
    let pod = endpoint.pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "cart-0"));
    assert_eq!(pod.uid.as_deref(), Some("1-2-3"));
    assert_eq!(endpoint.node, "node-under-test");
}

#[test]
fn a_broken_stderr_makes_no_verb_fail() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    for verb in ["ADD", "DEL"] {
        let status = execute_in_shell(&pod, verb, &node.network(), "exec \"$0\" 2>/dev/full");

        assert!(status.success(), "{verb}: {status}");
    }
}

#[test]
fn without_a_umask_nobody_else_may_write_what_a_plugin_makes() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let mut network = node.network();
    network["state_dir"] = json!(node.path("new/state"));
    network["run_dir"] = json!(node.path("new/run"));
    network["log_file_path"] = json!(node.path("new/log/cni.log"));

    let status = execute_in_shell(&pod, "ADD", &network, "umask 0; exec \"$0\"");

    assert!(status.success(), "{status}");
    let new = node.path("new");
    assert_eq!(node.run(&["find", new.to_str().unwrap(), "-type", "d", "-perm", "/022"]), "");
}

/// Executes the plugin, which is `$0` of the script.
fn execute_in_shell(pod: &Pod<'_>, verb: &str, network: &Value, script: &str) -> ExitStatus {
    let config = pod.node().path("config");
    fs::write(&config, network.to_string()).unwrap();
    Command::new("sh")
        .args(["-c", script])
        .arg(plugin_directory().join("margay"))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", pod.container_id())
        .env("CNI_NETNS", pod.netns_path())
        .env("CNI_IFNAME", "eth0")
        .stdin(File::open(&config).unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap()
}
