//! `margayctl pool`.

use std::io::ErrorKind;
use std::net::TcpListener;

use margay_tests::Node;
use margay_tests::cni::{CniOutput, Invocation};
use margay_tests::ctl::{Ctl, Printed};
use margay_tests::node::plugin_directory;
use margay_tests::pod::address;
use serde_json::{Value, json};

use crate::fields::assert_fields;

const POOL: &str = "10.244.0.0/24";

#[test]
fn a_disabled_pool_gives_nothing_until_it_is_enabled_whatever_the_configuration_says() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let [stays, comes] = ["stays", "comes"].map(|name| node.sandbox(name));
    stays.add(&network);

    let done = ctl.json(&["pool", "disable", POOL]);

    assert_fields(&done, "did networks note pool");
    assert_eq!((&done["did"], &done["networks"]), (&json!("disabled"), &json!(["podnet"])));
    let mut changed = network.clone();
    changed["ipam"]["pools"][0]["nat_outgoing"] = json!(false);
    changed["ipam"]["pools"][0]["vxlan_mode"] = json!("Always");
    for network in [&network, &changed] {
        let (code, _) = comes.invocation("ADD", network).execute().error();
        assert_eq!(code, 101);
    }
    let row = pool(&ctl, POOL);
    assert_eq!((&row["state"], &row["disabled_by_operator"]), (&json!("disabled"), &json!(true)));
    assert!(ctl.text(&["pool", "list"]).contains("disabled by an operator"));
    assert!(ctl.text(&["pool", "enable", POOL]).contains("enabled"));
    assert_eq!(pool(&ctl, POOL)["state"], "enabled");
    assert!(address(&comes.add(&network), true).is_ipv4());
}

#[test]
fn a_pool_is_deleted_once_it_is_empty_and_comes_back_with_the_next_add() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);

    let refused = ctl.run(&["pool", "delete", POOL]);

    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("1 addresses in use"), "{refused:?}");
    assert_eq!(pool(&ctl, POOL)["state"], "enabled");
    pod.del(&network);
    let deleted = ctl.json(&["pool", "delete", POOL]);
    assert!(deleted["note"].as_str().unwrap().contains("next ADD"), "{deleted}");
    assert_eq!(pool(&ctl, POOL)["state"], "unused");
    assert_eq!(pool(&ctl, POOL)["blocks"], 0);
    pod.add(&network);
    assert_eq!(pool(&ctl, POOL)["state"], "enabled");
}

#[test]
fn a_pool_that_is_created_first_holds_every_configuration_to_its_blocks() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);

    let created = ctl.json(&["pool", "create", POOL, "--block-size", "28", "--disabled"]);

    assert_eq!(created["did"], "created");
    let pod = node.sandbox("a");
    let (_, message) = pod.invocation("ADD", &network).execute().error();
    assert!(message.contains("blocks of /28"), "{message}");
    let mut fitting = network.clone();
    fitting["ipam"]["pools"][0]["block_size"] = json!(28);
    assert_eq!(pod.invocation("ADD", &fitting).execute().error().0, 101, "it is disabled");
    assert!(ctl.text(&["pool", "enable", POOL]).contains("enabled"));
    pod.add(&fitting);
    assert_eq!(ctl.run(&["pool", "create", POOL]).code, 1, "it is there");
    assert_eq!(ctl.run(&["pool", "create", "10.244.0.1/24"]).code, 1, "host bits");
}

#[test]
fn what_the_configuration_disables_stays_so_and_pools_go_by_their_names() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"].as_array_mut().unwrap().push(json!({
        "cidr": "10.245.0.0/24", "name": "spare", "disabled": true,
    }));
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);

    assert_eq!(pool(&ctl, "10.245.0.0/24")["state"], "unused");
    let created = ctl.text(&["pool", "create", "10.245.0.0/24"]);
    assert!(created.contains("a network configuration names it"), "{created}");
    assert_eq!(ctl.json(&["pool", "disable", "spare"])["pool"], "10.245.0.0/24");
    assert_eq!(ctl.run(&["pool", "disable", "no-such"]).code, 1);
    assert_eq!(ctl.run(&["pool", "disable", "10.9.0.0/24"]).code, 1);
}

#[test]
fn a_pool_of_the_datastore_is_chosen_by_its_name_or_range_and_is_what_was_created() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"].as_object_mut().unwrap().remove("pools");
    network["ipam"]["ipv4_pools"] = json!(["blue"]);
    let ctl = Ctl::new(&node, &network);
    let create = |arguments: &[&str]| ctl.text(&[&["pool", "create"], arguments].concat());
    let _created =
        create(&["10.245.0.0/24", "--name", "blue", "--block-size", "28", "--nat-outgoing"]);
    let _created = create(&["10.246.0.0/24", "--block-size", "29"]);
    assert_eq!(ctl.run(&["pool", "create", "10.247.0.0/24", "--name", "blue"]).code, 1, "its name");

    let pod = node.sandbox("a");
    assert!(status(&network).is_success());
    let result = pod.add(&network);

    let ip = address(&result, true);
    assert!(ip.to_string().starts_with("10.245.0."), "{ip}");
    let row = pool(&ctl, "10.245.0.0/24");
    assert_eq!((&row["name"], &row["block_size"]), (&json!("blue"), &json!(28)));
    assert!(ctl.text(&["pool", "list"]).contains("10.245.0.0/24 (blue)"));
    assert_eq!((&row["nat_outgoing"], &row["networks"]), (&json!(true), &json!(["podnet"])));
    assert!(pod.check(&network, &result).is_success());
    assert!(node.run(&["nft", "list", "table", "inet", "margay"]).contains("10.245.0.0/24"));
    let printed = doctor(&ctl);
    assert_eq!((printed.code, &*printed.stdout), (0, "nothing is wrong\n"), "{printed:?}");

    // Beside pools of the configuration, and by its range.
    let mut mixed = node.network();
    mixed["ipam"]["ipv4_pools"] = json!(["10.246.0.0/24", "10.244.0.0/24"]);
    let other = node.sandbox("b");
    let ip = address(&other.add(&mixed), true);
    assert!(ip.to_string().starts_with("10.246.0."), "{ip}");
    assert_eq!(pool(&ctl, "10.246.0.0/24")["block_size"], 29);
    let mut of_ptp = json!({"cniVersion": "1.0.0", "name": "ptpnet", "type": "ptp"});
    of_ptp["ipam"] = json!({
        "type": "margay-ipam", "ipv4_pools": ["blue"], "nodename": "node-under-test",
        "state_dir": network["state_dir"], "run_dir": network["run_dir"],
    });
    let given = other.invocation_of("margay-ipam", "ADD", &of_ptp).execute().success();
    assert!(given["ips"][0]["address"].as_str().unwrap().starts_with("10.245.0."), "{given}");
    let _disabled = ctl.text(&["pool", "disable", "blue"]);
    assert_eq!(pool(&ctl, "10.245.0.0/24")["state"], "disabled");
    other.del(&mixed);
    pod.del(&network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn a_pool_that_nobody_knows_is_an_error_of_the_configuration_for_every_verb_that_needs_it() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let (ctl, pod) = (Ctl::new(&node, &network), node.sandbox("a"));
    let added = pod.add(&network);
    network["ipam"]["ipv4_pools"] = json!(["blue"]);
    ctl.install(&network);
    let new = node.sandbox("b");

    let (code, message) = new.invocation("ADD", &network).execute().error();
    let (of_status, _) = status(&network).error();
    let printed = doctor(&ctl);

    assert_eq!((code, of_status, printed.code), (7, 50, 20), "{message}");
    assert!(pod.check(&network, &added).is_success(), "it has its addresses");
    assert_eq!(pod.invocation("ADD", &network).execute().error().0, 100);
    for text in [&message, &printed.stdout] {
        assert!(text.contains("ipam.ipv4_pools[0] = \"blue\": is neither"), "{text}");
    }
    assert!(printed.stdout.contains("pool-unknown"), "{printed:?}");
    // Who goes needs no pool.
    pod.del(&network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn pools_that_are_all_disabled_are_not_called_unknown() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let (ctl, pod) = (Ctl::new(&node, &network), node.sandbox("a"));
    let _created = ctl.text(&["pool", "create", "10.245.0.0/24", "--name", "blue"]);
    network["ipam"]["ipv4_pools"] = json!(["blue"]);
    pod.add(&network);
    ctl.install(&network);
    let (store, is_of_blue) =
        (node.store(), |text: &[u8]| text.windows(6).any(|it| it == b"\"blue\""));
    let pools = store.backend().list("pools/", None).unwrap();
    let blue = pools.iter().find(|pool| is_of_blue(&pool.value)).unwrap();
    let mut record: Value = serde_json::from_slice(&blue.value).unwrap();
    record["disabled"] = json!(true);
    store.backend().update(&blue.key, record.to_string().as_bytes(), blue.revision).unwrap();

    let printed = doctor(&ctl);

    assert_eq!(printed.code, 20, "{printed:?}");
    assert!(printed.stdout.contains("pools-disabled"), "{printed:?}");
    assert!(printed.stdout.contains("ipam.ipv4_pools"), "{printed:?}");
    assert!(!printed.stdout.contains("pool-unknown"), "{printed:?}");
}

#[test]
fn commands_that_need_no_pools_do_not_ask_the_datastore_for_them() {
    let Some(node) = Node::new() else { return };
    let datastore = TcpListener::bind("127.0.0.1:0").unwrap();
    datastore.set_nonblocking(true).unwrap();
    let mut network = node.network();
    network["ipam"].as_object_mut().unwrap().remove("pools");
    network["ipam"]["ipv4_pools"] = json!(["blue"]);
    network["datastore_type"] = json!("etcdv3");
    network["etcd_endpoints"] = json!(format!("http://{}", datastore.local_addr().unwrap()));
    network["etcd_connect_timeout_ms"] = json!(1000);
    network["etcd_verb_timeout_ms"] = json!(1000);
    let ctl = Ctl::new(&node, &network);

    for command in [&["completion", "bash"][..], &["datapath", "programs"], &["datapath", "maps"]] {
        let _printed = ctl.run(command);

        let asked = datastore.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(asked, Err(ErrorKind::WouldBlock), "{command:?}");
    }
    // One that does is seen.
    let _printed = ctl.run(&["pool", "list"]);
    assert!(datastore.accept().is_ok());
}

#[test]
fn a_name_that_several_pools_have_is_none_to_change_one_by() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let ctl = Ctl::new(&node, &network);
    let _created = ctl.text(&["pool", "create", "10.246.0.0/24", "--name", "blue"]);
    let mut of_another = network.clone();
    of_another["ipam"]["pools"][0]["name"] = json!("blue");
    let range = of_another["ipam"]["pools"][0]["cidr"].as_str().unwrap();
    node.sandbox("a").add(&of_another);
    assert_eq!(pool(&ctl, range)["name"], Value::Null, "the name is another's");
    // One that only this node's configuration has counts.
    network["ipam"]["pools"].as_array_mut().unwrap().push(json!({
        "cidr": "10.247.0.0/24", "name": "blue",
    }));
    ctl.install(&network);

    for verb in ["disable", "enable", "delete"] {
        let printed = ctl.run(&["pool", verb, "blue"]);

        assert_eq!(printed.code, 1, "{printed:?}");
        let said = &printed.stderr;
        assert!(said.contains("10.246.0.0/24") && said.contains("10.247.0.0/24"), "{said}");
        assert!(said.contains("name one of these"), "{said}");
    }
    assert_eq!(pool(&ctl, "10.246.0.0/24")["state"], "enabled");
    assert_eq!(ctl.json(&["pool", "disable", "10.246.0.0/24"])["did"], "disabled");
}

fn status(network: &Value) -> CniOutput {
    Invocation::new("margay", "STATUS", network).execute()
}

/// As a person reads it.
fn doctor(ctl: &Ctl<'_>) -> Printed {
    ctl.run(&["doctor", "--bin-dir", plugin_directory().to_str().unwrap()])
}

fn pool(ctl: &Ctl<'_>, cidr: &str) -> Value {
    let listed = ctl.json(&["pool", "list"]);
    let row = listed["pools"].as_array().unwrap().iter().find(|pool| pool["cidr"] == cidr);
    row.unwrap_or_else(|| panic!("{cidr} is not in {listed}")).clone()
}
