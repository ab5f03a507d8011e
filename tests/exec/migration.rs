//! Other plugins' conflists, as their manifests write them, with `type` changed.

use std::fs;

use margay_tests::node::reference_plugin_directory;
use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{Invocation, Node, Pod};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

/// Of the manifest `calico.yaml` of Calico 3.2x, with its placeholders filled in.
const MANIFEST: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "datastore_type": "kubernetes",
      "nodename": "node-a",
      "mtu": 0,
      "ipam": { "type": "calico-ipam" },
      "policy": { "type": "k8s" },
      "kubernetes": { "kubeconfig": "/etc/cni/net.d/calico-kubeconfig" }
    },
    { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
    { "type": "bandwidth", "capabilities": { "bandwidth": true } }
  ]
}"#;

/// As Calico's operator writes it, of the year 2026, with all that can be chosen chosen.
const OPERATOR: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "plugins": [
    {
      "calico_api_group": "projectcalico.org/v3",
      "container_settings": { "allow_ip_forwarding": false },
      "datastore_type": "kubernetes",
      "device_type": "netkit",
      "endpoint_status_dir": "/var/run/calico/endpoint-status",
      "ipam": { "assign_ipv4": "true", "assign_ipv6": "false", "type": "calico-ipam" },
      "kubernetes": {
        "k8s_api_root": "https://10.96.0.1:443",
        "kubeconfig": "/etc/cni/net.d/calico-kubeconfig"
      },
      "log_file_max_age": 30,
      "log_file_max_count": 10,
      "log_file_max_size": 100,
      "log_file_path": "/var/log/calico/cni/cni.log",
      "log_level": "Info",
      "mtu": 0,
      "nodename_file_optional": false,
      "policy": { "type": "k8s" },
      "policy_setup_timeout_seconds": 10,
      "type": "calico"
    },
    { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
    { "type": "tuning", "sysctl": { "net.core.somaxconn": "1000" } }
  ]
}"#;

/// Of the manifest `kube-flannel.yml`.
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;

#[test]
fn calicos_conflists_work_and_the_log_names_the_keys_without_effect() {
    for (conflist, idle) in [
        (MANIFEST, "datastore_type, kubernetes, policy.type"),
        (
            OPERATOR,
            "calico_api_group, datastore_type, device_type, endpoint_status_dir, kubernetes, \
             log_file_max_age, log_file_max_count, log_file_max_size, policy.type, \
             policy_setup_timeout_seconds",
        ),
    ] {
        let Some(node) = Node::new() else { return };
        hide_the_machines_directories();
        let plugins = with_type_changed(conflist, "calico");
        let (a, b) = (node.sandbox("a"), node.sandbox("b"));

        let result_a = add_chain(&a, &plugins);
        let result_b = add_chain(&b, &plugins);

        assert!(address(&result_a, true).to_string().starts_with("192.168."), "{result_a}");
        assert_ping(&a, address(&result_b, true));
        assert_ping(&node, address(&result_a, true));
        let log = fs::read_to_string("/var/log/calico/cni/cni.log").unwrap();
        let line = log.lines().find(|line| line.contains("keys without effect")).expect("a line");
        let listed = line.split_once("keys without effect: ").unwrap().1;
        let mut keys: Vec<_> = listed.split(';').next().unwrap().split(", ").collect();
        keys.sort_unstable();
        assert_eq!(keys.join(", "), idle);
        assert!(line.contains("network policy is not enforced"), "{line}");
        assert!(log.contains("192.168.0.0/16"), "{log}");
        let rules = node.run(&["nft", "list", "table", "inet", "margay"]);
        assert!(rules.contains("192.168.0.0/16"), "{rules}");

        for pod in [&a, &b] {
            del_chain(pod, &plugins);
        }
        assert!(node.pod_links().is_empty());
    }
}

#[test]
fn flannels_conflist_is_refused_with_the_key_that_has_no_meaning_here() {
    let Some(node) = Node::new() else { return };
    hide_the_machines_directories();
    let plugins = with_type_changed(FLANNEL, "flannel");
    let pod = node.sandbox("a");

    let (code, message) = pod.invocation("ADD", &plugins[0]).execute().error();

    assert_eq!(code, 2);
    assert!(message.contains("delegate = "), "{message}");
    assert!(message.contains("ipam.pools"), "{message}");
}

/// The directories that such a configuration means are margay's default ones: the test's thread, and
/// what it starts, see empty ones in their places.
fn hide_the_machines_directories() {
    for (directory, kind) in
        [("/var/lib", "tmpfs"), ("/var/log", "tmpfs"), ("/run", "tmpfs"), ("/sys/fs/bpf", "bpf")]
    {
        mount(kind, directory, kind, MountFlags::empty(), None).unwrap();
    }
}

/// What a runtime sends to each plugin of the list.
fn with_type_changed(conflist: &str, from: &str) -> Vec<Value> {
    let list: Value = serde_json::from_str(conflist).unwrap();
    let mut plugins = list["plugins"].as_array().unwrap().clone();
    assert_eq!(plugins[0]["type"], from);
    plugins[0]["type"] = json!("margay");
    for plugin in &mut plugins {
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
    }
    plugins
}

fn add_chain(pod: &Pod<'_>, plugins: &[Value]) -> Value {
    let mut result = Value::Null;
    for plugin in plugins {
        let mut config = plugin.clone();
        if !result.is_null() {
            config["prevResult"] = result;
        }
        result = invocation(pod, "ADD", &config).execute().success();
    }
    result
}

fn del_chain(pod: &Pod<'_>, plugins: &[Value]) {
    for plugin in plugins.iter().rev() {
        invocation(pod, "DEL", plugin).execute().success();
    }
}

fn invocation(pod: &Pod<'_>, verb: &str, plugin: &Value) -> Invocation {
    let reference = reference_plugin_directory();
    let executable = match plugin["type"].as_str().unwrap() {
        "margay" => "margay".to_owned(),
        other => reference.join(other).to_str().unwrap().to_owned(),
    };
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", std::env::var("PATH").unwrap());
    pod.invocation_of(&executable, verb, plugin)
        .env("CNI_PATH", reference.to_str().unwrap())
        .env("PATH", &path)
}
