//! `margayctl bundle`: what is in it, and what never is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::pod::address;
use serde_json::{Value, json};

/// One for each place that can hold one.
const SECRETS: [&str; 8] = [
    "s3cret-of-the-conflist",
    "s3cret-in-a-file",
    "s3cret-in-a-url",
    "s3cret-of-the-agent",
    "s3cret-of-another-plugin",
    "s3cret-in-a-key",
    "s3cret-in-what-is-no-json",
    "s3cret-token",
];

#[test]
fn a_bundle_has_what_there_is_and_no_secret() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["log_file_path"] = json!(node.path("cni.log"));
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let ctl = Ctl::new(&node, &network);
    put_secrets(&node, &ctl, &network);
    let file = node.path("bundle.tar.gz");

    let printed = ctl.text(&["bundle", file.to_str().unwrap()]);

    assert_eq!(printed.trim(), file.to_str().unwrap());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let folder = unpacked(&node, &file);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let document = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
    assert_eq!(document("endpoints.json")[0]["attachment"], "podnet/a/eth0");
    assert_eq!(document("maps/pods.json")[0]["address"], json!(address(&result, true)));
    assert_eq!(document("pools.json").as_array().unwrap().len(), 2);
    assert_eq!(document("filters.json")[0]["is_in_margays_place"], true);
    assert_eq!(document("status.json")["node"], "node-under-test");
    let conf = document("configuration/10-podnet.conflist");
    assert_eq!(conf["plugins"][0]["etcd_username"], "margay");
    assert_eq!(conf["plugins"][0]["etcd_password"], "(removed)");
    assert!(document("doctor.json")["findings"].is_array());
    assert!(read("log.txt").contains("verb=\"ADD\"") && read("log.txt").contains("(removed)"));
    assert!(read("README.txt").contains("support archive"));
    let everything = everything_in(&folder);
    for secret in SECRETS {
        assert!(!everything.contains(secret), "{secret} is in the bundle");
    }
    assert!(everything.contains("/etc/margay/etcd-key.pem"), "where a key is may be known");
}

#[test]
fn a_file_that_is_there_is_left_alone() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    let file = node.path("bundle.tar.gz");
    fs::write(&file, "mine").unwrap();

    let printed = ctl.run(&["bundle", file.to_str().unwrap()]);

    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("bundle.tar.gz"), "{printed:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_node_without_anything_has_a_bundle_too() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    fs::remove_dir_all(ctl.conf_dir()).unwrap();
    let file = node.path("bundle.tar.gz");

    let _file = ctl.text(&["bundle", file.to_str().unwrap()]);

    let doctor = fs::read_to_string(unpacked(&node, &file).join("doctor.json")).unwrap();
    assert!(doctor.contains("config-missing"), "{doctor}");
}

fn put_secrets(node: &Node, ctl: &Ctl<'_>, network: &Value) {
    let [conflist, in_file, in_url, agents, others, key, torn, token] = SECRETS;
    fs::write(node.path("password"), format!("{in_file}\n")).unwrap();
    let mut with_password = network.clone();
    with_password["etcd_username"] = json!("margay");
    with_password["etcd_password"] = json!(conflist);
    with_password["etcd_cert_file"] = json!("/etc/margay/etcd.pem");
    with_password["etcd_key_file"] = json!("/etc/margay/etcd-key.pem");
    with_password["policy"] = json!({"k8s_auth_token": token});
    ctl.install(&with_password);
    let mut of_file = network.clone();
    of_file["name"] = json!("other");
    of_file["etcd_password_file"] = json!(node.path("password"));
    // Not one that margay takes, and its error quotes it.
    of_file["etcd_endpoints"] = json!(format!("https://user:{in_url}@10.0.0.1:2379"));
    ctl.install(&of_file);
    let other = json!({"name": "x", "type": "x", "apiSecret": [others], "cert": format!("-----BEGIN PRIVATE KEY-----{key}")});
    fs::write(ctl.conf_dir().join("90-x.conf"), other.to_string()).unwrap();
    fs::write(ctl.conf_dir().join("91-torn.conf"), format!("{{\"password\": \"{torn}")).unwrap();
    let agent = json!({"etcd_username": "margay", "etcd_password": agents});
    fs::write(node.path("agent.json"), agent.to_string()).unwrap();
    let log = node.path("cni.log");
    let mut text = fs::read_to_string(&log).unwrap();
    for secret in [conflist, in_file, in_url, agents, others, token] {
        text += &format!("2026-11-22T05:00:00Z ERROR somebody logged {secret}\n");
    }
    fs::write(&log, text).unwrap();
}

fn unpacked(node: &Node, file: &Path) -> std::path::PathBuf {
    let to = node.path("unpacked");
    fs::create_dir(&to).unwrap();
    node.run(&["tar", "-xzf", file.to_str().unwrap(), "-C", to.to_str().unwrap()]);
    let mut folders = fs::read_dir(to).unwrap();
    folders.next().unwrap().unwrap().path()
}

fn everything_in(folder: &Path) -> String {
    let mut everything = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => everything += &everything_in(&path),
            false => everything += &fs::read_to_string(&path).unwrap(),
        }
    }
    everything
}
