//! Configurations and plugins that are not as they should be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;
use serde_json::json;

use super::{Diagnosis, node_with_a_pod};

#[test]
fn a_folder_without_a_network_of_margays_is_named() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    fs::remove_dir_all(ctl.conf_dir()).unwrap();

    Diagnosis::of(&ctl).assert_found("config-missing", "net.d has no network");
    fs::create_dir(ctl.conf_dir()).unwrap();
    fs::write(ctl.conf_dir().join("10-other.conf"), r#"{"name": "x", "type": "bridge"}"#).unwrap();
    Diagnosis::of(&ctl).assert_found("config-missing", "net.d has no network");
}

#[test]
fn what_is_wrong_with_a_network_is_named() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);

    let mut misspelt = network.clone();
    misspelt["name"] = json!("misspelt");
    misspelt["mtuu"] = json!(1400);
    ctl.install(&misspelt);
    fs::write(ctl.conf_dir().join("20-torn.conflist"), "{").unwrap();
    let mut old = network.clone();
    old["name"] = json!("old");
    old["cniVersion"] = json!("0.2.0");
    ctl.install(&old);
    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("config-unusable", "did you mean mtu?");
    diagnosis.assert_found("config-unusable", "20-torn.conflist");
    diagnosis.assert_found("config-version", "cniVersion \"0.2.0\"");
}

#[test]
fn a_network_that_the_runtime_takes_first_is_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    fs::write(ctl.conf_dir().join("05-other.conf"), r#"{"name": "x", "type": "bridge"}"#).unwrap();

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("config-not-first", "05-other.conf comes before");
    diagnosis.assert_only(&["config-not-first"]);
}

#[test]
fn plugins_that_are_missing_or_of_another_release_are_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let bin = node.path("bin");
    fs::create_dir(&bin).unwrap();
    let with_bin = || Diagnosis::with_bin_dir(&ctl, &bin);

    with_bin().assert_found("plugin-missing", "bin/margay is no file");

    fs::write(bin.join("margay"), "#!/bin/sh\necho 'CNI plugin margay v9.9.9' >&2\n").unwrap();
    with_bin().assert_found("plugin-missing", "bin/margay is no file that can be executed");
    fs::set_permissions(bin.join("margay"), fs::Permissions::from_mode(0o755)).unwrap();
    let diagnosis = with_bin();
    diagnosis.assert_found("plugin-other-version", "CNI plugin margay v9.9.9");
    diagnosis.assert_only(&["plugin-other-version"]);

    fs::remove_file(bin.join("margay")).unwrap();
    symlink(plugin_directory().join("margay"), bin.join("margay")).unwrap();
    with_bin().assert_only(&[]);
}

#[test]
fn a_configuration_of_the_agent_that_cannot_be_used_or_is_of_another_node_is_named() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["datastore_type"] = json!("etcdv3");
    network["etcd_endpoints"] = json!("http://127.0.0.1:1");
    network["etcd_connect_timeout_ms"] = json!(100);
    let ctl = Ctl::new(&node, &network);
    let write = |agent: serde_json::Value| {
        fs::write(node.path("agent.json"), agent.to_string()).unwrap();
        Diagnosis::of(&ctl)
    };

    write(json!({"vxlan_prot": 1})).assert_found("agent-config-unusable", "vxlan_port?");
    write(json!({})).assert_found("agent-differs", "nodename: node-under-test and");
    let mut agent = json!({"nodename": "node-under-test"});
    for key in ["state_dir", "run_dir", "bpffs_root"] {
        agent[key] = network[key].clone();
    }
    write(agent.clone()).assert_found("agent-differs", "datastore_type: etcdv3 and local");
    for key in ["datastore_type", "etcd_endpoints"] {
        agent[key] = network[key].clone();
    }
    let diagnosis = write(agent.clone());
    for absent in ["agent-differs", "agent-map-sizes"] {
        assert!(!diagnosis.ids().contains(&absent), "{diagnosis:#?}");
    }
    agent["max_flows"] = json!(1000);
    write(agent).assert_found("agent-map-sizes", "max_flows is 131072 in network podnet and 1000");
}

#[test]
fn without_root_it_says_what_it_did_not_look_at() {
    const NOBODY: u32 = 65534;
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let everybody = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    everybody(node.directory()).unwrap();
    // Where the build is may be out of their reach.
    let (bin, copy) = (node.path("bin"), node.path("bin/margayctl"));
    fs::create_dir(&bin).unwrap();
    for name in ["margay", "margay-ipam", "margayctl"] {
        fs::copy(plugin_directory().join(name), bin.join(name)).unwrap();
    }
    let mut command = std::process::Command::new(copy);
    let ready = ctl.command(&["doctor", "-o", "json", "--bin-dir", bin.to_str().unwrap()]);
    command.args(ready.get_args()).uid(NOBODY).gid(NOBODY);

    let diagnosis = Diagnosis::by(&mut command);

    diagnosis.assert_found("without-root", "without root's rights");
    diagnosis.assert_only(&["without-root"]);
}

impl Diagnosis {
    fn with_bin_dir(ctl: &Ctl<'_>, bin: &Path) -> Self {
        let bin = bin.to_str().unwrap();
        Self::read(&ctl.run(&["doctor", "--bin-dir", bin, "-o", "json"]))
    }
}
