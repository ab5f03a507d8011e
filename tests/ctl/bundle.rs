//! `margayctl bundle`: what is in it, and what never is.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use margay_abi::{FlowKeyV4, flow_verdict};
use margay_datapath::Remote;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::pod::address;
use serde_json::{Value, json};

/// One for each place that can hold one.
const SECRETS: [&str; 17] = [
    "s3cret-of-the-conflist",
    "s3cret-in-a-file",
    "s3cret-in-a-url",
    "s3cret-of-the-agent",
    "s3cret-of-another-plugin",
    "s3cret-in-a-key",
    "s3cret-in-what-is-no-json",
    "s3cret-token",
    "s3cret-of-an-object",
    "s3cret-in-a-query",
    "s3cret-of-the-environment",
    "s3cret-on-a-command-line",
    "s3cret-behind-a-flag",
    "s3cret-of-a-header",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzM2NyZXQifQ.c2ln",
    "s3cret-with-an-ümlaut-\"-and-a-quote",
    "7701234509",
];
/// Names of secrets, whose values begin with [`OF_A_NAME`].
const NAMES: [&str; 12] = [
    "secretkey",
    "SECRETKEY",
    "s3secretkey",
    "secretvalue",
    "tokenvalue",
    "secretid",
    "pskhex",
    "apikeyvalue",
    "token1",
    "token2",
    "secret2",
    "apikey1",
];
const OF_A_NAME: &str = "s3cret-by-its-name";
/// With a secret that begins with [`IN_A_TEXT`].
const TEXTS: [&str; 9] = [
    "https://u:a?s3cret-in-a-text@10.0.0.9:2379",
    "run --password=ab,s3cret-in-a-text",
    "DB_PASSWORD=abc://s3cret-in-a-text",
    "Authorization=Bearer s3cret-in-a-text",
    "Authorization: Bearer s3cret-in-a-text",
    "{\"password\":\"s3cret-in-a-text\"}",
    "sent {\"password\":\"s3cret-in-a-text\"}",
    "password: of words s3cret-in-a-text",
    "X-Api-Key: s3cret-in-a-text",
];
const IN_A_TEXT: &str = "s3cret-in-a-text";
/// What stands beside them, looks like one, and has to be in the archive.
const HARMLESS: [&str; 17] = [
    "\"token_ttl\": 7301",
    "\"token_timeout\": \"7302s\"",
    "\"password_min_length\": 7303",
    "\"use_token\": true",
    "\"tokenizer\": \"harmless-tokenizer\"",
    "\"secretary\": \"harmless-secretary\"",
    "\"secret_name\": \"harmless-name\"",
    "\"public_key\": \"harmless-public\"",
    "\"key\": \"harmless-key\"",
    "\"authority\": \"harmless-authority\"",
    "\"rotate_seconds\": 7304",
    "\"value\": \"harmless-mode\"",
    "harmless.example/token?page=7305",
    "--mtu=7306",
    "harmless-argument",
    "\"tokenEndpoint\": \"https://harmless-issuer/\"",
    "token_ttl=7307",
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
    put_ways(&node);
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
    let sysctls = document("sysctls.json");
    assert_eq!(sysctls["net/ipv4/ip_forward"], "1");
    let veth = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(sysctls[format!("net/ipv4/conf/{veth}/forwarding")], "1");
    let forward = read("firewall/forward.txt");
    assert!(forward.contains("10.244.0.0/16") && !forward.contains("10.77.0.0"), "{forward}");
    assert_eq!(document("maps/remotes.json")[0]["node"], "192.168.77.9");
    assert_eq!(document("maps/remotes.json")[0]["prefix"], "10.246.0.0/26");
    let flows = document("maps/flows.json");
    let kinds: Vec<_> = flows["kinds"].as_array().unwrap().iter().collect();
    let of_udp = |verdict: &str| {
        let is_it = |kind: &&&Value| kind["verdict"] == verdict && kind["protocol"] == "udp";
        kinds.iter().find(is_it).unwrap_or_else(|| panic!("{flows}"))["flows"].clone()
    };
    assert_eq!((of_udp("direct"), of_udp("via_stack")), (json!(1), json!(1)));
    let everything = everything_in(&folder);
    assert!(!everything.contains("10.9.9."), "who speaks with whom is told with --flows alone");
    for harmless in HARMLESS {
        assert!(everything.contains(harmless), "{harmless} is not in the bundle");
    }
    for secret in SECRETS.into_iter().chain([OF_A_NAME, IN_A_TEXT]) {
        assert!(!everything.contains(secret), "{secret} is in the bundle");
    }
    assert!(everything.contains("/etc/margay/etcd-key.pem"), "where a key is may be known");

    let _file = ctl.text(&["bundle", "--flows", node.path("flows.tar.gz").to_str().unwrap()]);
    fs::remove_dir_all(node.path("unpacked")).unwrap();
    let folder = unpacked(&node, &node.path("flows.tar.gz"));
    let every_flow = fs::read_to_string(folder.join("maps/every_flow.json")).unwrap();
    assert!(every_flow.contains("10.9.9.9") && every_flow.contains("via_stack"), "{every_flow}");
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

/// Flows of both verdicts, the way to another node's pods, and rules of a firewall.
fn put_ways(node: &Node) {
    for (src, verdict) in
        [([10, 9, 9, 9], flow_verdict::DIRECT), ([10, 9, 9, 8], flow_verdict::VIA_STACK)]
    {
        let flow = FlowKeyV4 {
            src,
            dst: [10, 9, 9, 10],
            src_port: [0, 1],
            dst_port: [0, 2],
            protocol: 17,
            reserved: [0; 3],
        };
        node.datapath().flows().set_v4(&flow, verdict).unwrap();
    }
    let prefix = "10.246.0.0/26".parse().unwrap();
    let node_address = Ipv4Addr::new(192, 168, 77, 9).to_ipv6_mapped().octets();
    let remote = Remote { node: node_address, mtu: 1400, mac: [2; 6], mode: 2, reserved: 0 };
    node.datapath().remotes().set(prefix, &remote).unwrap();
    node.run(&["iptables", "-A", "FORWARD", "-s", "10.244.0.0/16", "-j", "ACCEPT"]);
    node.run(&["iptables", "-A", "INPUT", "-s", "10.77.0.0/16", "-j", "ACCEPT"]);
}

fn put_secrets(node: &Node, ctl: &Ctl<'_>, network: &Value) {
    let [conflist, in_file, in_url, agents, others, key, torn, token, ..] = SECRETS;
    let [.., object, query, variable, argument, flag, header, jwt, quoted, number] = SECRETS;
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
    let mut of_all_kinds = json!({
        "name": "y", "type": "y",
        "registryCredentials": {"user": "x", "data": object, "rotate_seconds": 7304},
        "webhook": format!("https://hooks.example/in?id=1&access_token={query}"),
        "env": [{"name": "DB_PASSWORD", "value": variable}, {"name": "MODE", "value": "harmless-mode"}],
        "args": [format!("--api-key={argument}"), "--mtu=7306", "--token", flag, "harmless-argument"],
        "headers": {"X-Trace": format!("Bearer {header}")},
        "note": format!("signed in as {jwt} yesterday"),
        "passphrase": quoted,
        "pin_passwd": 7_701_234_509_u64,
        "token_ttl": 7301, "token_timeout": "7302s", "password_min_length": 7303, "use_token": true,
        "tokenizer": "harmless-tokenizer", "secretary": "harmless-secretary", "secret_name": "harmless-name",
        "public_key": "harmless-public", "key": "harmless-key", "authority": "harmless-authority",
        "page": "https://harmless.example/token?page=7305", "tokenEndpoint": "https://harmless-issuer/",
    });
    for name in NAMES {
        of_all_kinds[name] = json!(format!("{OF_A_NAME}-{name}"));
    }
    of_all_kinds["tokens_by_name"] = json!({"a": format!("{OF_A_NAME}-below")});
    of_all_kinds["secretsByType"] = json!([[format!("{OF_A_NAME}-in-a-list")]]);
    of_all_kinds["texts"] = json!(TEXTS);
    fs::write(ctl.conf_dir().join("92-y.conf"), of_all_kinds.to_string()).unwrap();
    fs::write(ctl.conf_dir().join("91-torn.conf"), format!("{{\"password\": \"{torn}")).unwrap();
    let agent = json!({"etcd_username": "margay", "etcd_password": agents});
    fs::write(node.path("agent.json"), agent.to_string()).unwrap();
    let log = node.path("cni.log");
    let mut text = fs::read_to_string(&log).unwrap();
    for secret in [
        conflist, in_file, in_url, agents, others, token, object, query, variable, argument, flag,
        header, jwt, quoted, number,
    ] {
        text += &format!("2026-11-22T05:00:00Z ERROR somebody logged {secret}\n");
    }
    // Of which no configuration knows.
    text +=
        &format!("2026-11-22T05:00:00Z ERROR somebody calls x token_ttl=7307 --password={torn}\n");
    for of_nobody in TEXTS {
        text += &format!("{of_nobody}-nobody-knows\n");
        text += &format!("2026-11-22T05:00:00Z ERROR {of_nobody}-nobody-knows, and more\n");
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
