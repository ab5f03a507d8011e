//! `margayctl ipam`.

use std::net::IpAddr;

use margay::lock::Lock;
use margay_datastore::Revision;
use margay_tests::Node;
use margay_tests::cluster::wait_until;
use margay_tests::ctl::{Ctl, Printed};
use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use serde_json::{Value, json};

use crate::fields::assert_fields;

#[test]
fn pools_blocks_and_addresses_are_shown_with_who_has_them() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let pod = node.sandbox("a");
    let result = pod.invocation("ADD", &network).env("CNI_ARGS", arguments).execute().success();
    let ip = address(&result, true);

    let shown = ctl.json(&["ipam", "show"]);

    assert_fields(&shown, "blocks pools");
    assert_fields(
        &shown["pools"][0],
        "block_size blocks capacity cidr disabled_by_configuration \
        disabled_by_operator encapsulation name nat_outgoing networks state used",
    );
    assert_fields(&shown["blocks"][0], "borrowed cidr node pool released slots used");
    let numbers = |row: &Value| [&row["cidr"], &row["used"], &row["capacity"]].map(Value::clone);
    assert_eq!(numbers(&shown["pools"][0]), [json!("10.244.0.0/24"), json!(1), json!(253)]);
    assert_eq!(shown["blocks"][0]["node"], "node-under-test");
    let block = shown["blocks"][0]["cidr"].as_str().unwrap();
    let text = ctl.text(&["ipam", "show"]);
    assert!(text.contains("[#") && text.contains(block), "{text}");

    let of_block = ctl.json(&["ipam", "show", "--block", block]);
    assert_fields(&of_block, "addresses block");
    let held = &of_block["addresses"][0];
    assert_fields(held, "address assigned_at container_id interface namespace network node pod");
    assert_eq!((&held["address"], &held["pod"]), (&json!(ip), &json!("web")));

    let of_address = ctl.json(&["ipam", "show", &ip.to_string()]);
    assert_fields(&of_address, "address block block_node endpoints held_by pool state");
    assert_eq!((&of_address["state"], &of_address["held_by"]), (&json!("taken"), held));
    assert_eq!(of_address["endpoints"], json!(["podnet/a/eth0"]));
    for (address, state) in [("10.244.0.0", "reserved"), ("192.0.2.1", "foreign")] {
        assert_eq!(ctl.json(&["ipam", "show", address])["state"], state, "{address}");
    }
    assert!(ctl.text(&["ipam", "show", &ip.to_string()]).contains("default/web"));
}

#[test]
fn a_node_with_pods_contradicts_itself_nowhere() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    for pod in &pods {
        pod.add(&network);
    }
    pods[1].del(&network);

    let report = ctl.json(&["ipam", "check"]);

    assert_fields(&report, "findings unseen verdict");
    assert_eq!(report, json!({"verdict": "consistent", "findings": [], "unseen": []}));
}

#[test]
fn every_contradiction_is_found_by_its_name() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let scene = Scene { node: &node, ctl: &ctl };
    let pods = ["lost", "empty", "bare", "gone", "twin", "unmapped"].map(|name| node.sandbox(name));
    let results = pods.each_ref().map(|pod| pod.add(&network));
    let ip = |pod: usize| address(&results[pod], true);
    let store = node.store();
    let backend = store.backend();

    backend.delete("handles/podnet/lost/eth0", None).unwrap();
    scene.change("handles/podnet/empty/eth0", |handle| handle["assignment"] = json!("other"));
    store.delete_endpoint(&pods[2].attachment("podnet", "eth0"), "node-under-test").unwrap();
    let [_, _, _, gone, twin, unmapped] = pods;
    gone.destroy();
    wait_until("the veth pair's end", || node.pod_links().len() == 5);
    let mut endpoint = store.endpoint(&twin.attachment("podnet", "eth0")).unwrap().unwrap();
    endpoint.ips = vec![ip(5).into()];
    store.put_endpoint(&endpoint).unwrap();
    node.datapath().pods().remove(address(&results[5], false)).unwrap();
    let entry = node.datapath().pods().get(ip(5)).unwrap().unwrap();
    let stray: IpAddr = "10.244.0.250".parse().unwrap();
    node.datapath().pods().insert(stray, &entry).unwrap();
    backend.create("handles/podnet/torn/eth0", b"{").unwrap();
    let affinity = &backend.list("affinities/ipv6/", None).unwrap()[0].key;
    backend.delete(affinity, None).unwrap();
    let placement = &backend.list("placements/ipv4/", None).unwrap()[0].key;
    backend.delete(placement, None).unwrap();

    let printed = scene.check(20);

    let found = kinds(&printed);
    for kind in [
        "address_without_handle",
        "handle_without_addresses",
        "addresses_without_endpoint",
        "sandbox_gone",
        "address_not_its_own",
        "address_of_two_endpoints",
        "no_map_entry",
        "map_entry_of_nobody",
        "illegible_record",
        "block_without_claim",
        "block_misplaced",
    ] {
        assert!(found.contains(&kind.to_owned()), "{kind} is not in {found:?}");
    }
    assert!(unmapped.netns_path().exists());
    assert_fields(&printed["findings"][0], "attachment gravity hint kind text");
}

#[test]
fn warnings_alone_are_another_exit_code() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    node.store().delete_endpoint(&pod.attachment("podnet", "eth0"), "node-under-test").unwrap();
    node.datapath().pods().entries().unwrap().into_keys().for_each(|ip| {
        node.datapath().pods().remove(ip).unwrap();
    });

    let printed = Scene { node: &node, ctl: &ctl }.check(10);

    assert_eq!(kinds(&printed), ["addresses_without_endpoint"]);
}

#[test]
fn what_a_verb_is_at_work_on_is_no_contradiction() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let first = node.sandbox("first");
    first.add(&network);
    let pod = node.sandbox("a");
    let add = pod.invocation("ADD", &network).env("FAILPOINTS", "endpoint=sleep(4000)");
    let mut child = add.start();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // Its map entries are there, its endpoint is not.
    while node.datapath().pods().entries().unwrap().len() < 4 {
        assert!(std::time::Instant::now() < deadline, "the ADD does not get on");
        std::thread::yield_now();
    }

    let printed = ctl.run(&["ipam", "check", "--settle", "0.1", "-o", "json"]);
    let is_at_work = child.try_wait().unwrap().is_none();

    assert!(child.wait().unwrap().success());
    assert!(is_at_work, "the ADD was done before the check was");
    assert_eq!(printed.code, 0, "{printed:?}");
}

#[test]
fn only_what_nobody_uses_is_released_unless_forced() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let [alive, gone] = ["alive", "gone"].map(|name| node.sandbox(name));
    let ip = address(&alive.add(&network), true).to_string();
    let lost = address(&gone.add(&network), true).to_string();
    gone.destroy();
    wait_until("the veth pair's end", || node.pod_links().len() == 1);

    let refused = ctl.run(&["ipam", "release", &ip]);
    let released = ctl.json(&["ipam", "release", &lost]);

    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("is alive") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    assert_ping(&node, ip.parse().unwrap());
    assert_fields(&released, "addresses attachment");
    assert_eq!(released["attachment"], "podnet/gone/eth0");
    assert_eq!(ctl.json(&["ipam", "show", &lost])["state"], "free");
    assert_eq!(ctl.run(&["ipam", "release", "podnet/gone/eth0"]).code, 1, "there is nothing left");
    let text = ctl.text(&["ipam", "release", "podnet/alive/eth0", "--force"]);
    assert!(text.contains(&ip), "{text}");
    assert_eq!(node.pod_links(), []);
    assert_eq!(ctl.json(&["ipam", "check"])["verdict"], "consistent");
}

#[test]
fn an_address_that_nothing_leads_to_is_released_by_its_number() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let lost = node.sandbox("lost");
    let result = lost.add(&network);
    let store = node.store();
    store.backend().delete("handles/podnet/lost/eth0", None).unwrap();
    let [ipv4, ipv6] = [true, false].map(|ipv4| address(&result, ipv4).to_string());
    let release = |why: &str| {
        let refused = ctl.run(&["ipam", "release", &ipv4]);
        assert_eq!(refused.code, 1, "{why}: {refused:?}");
        assert!(refused.stderr.contains(why), "{why}: {refused:?}");
        assert_eq!(ctl.json(&["ipam", "show", &ipv4])["state"], "taken");
    };

    let endpoint = store.endpoint(&lost.attachment("podnet", "eth0")).unwrap().unwrap();
    release("the endpoint podnet/lost/eth0 has");
    let lock = Lock::take(&node.path("run"), &endpoint.host_veth).unwrap();
    release("a verb is at work");
    drop(lock);
    store.delete_endpoint(&endpoint.attachment, &endpoint.node).unwrap();
    release("its host veth");
    assert_ping(&node, ipv4.parse().unwrap());
    let forced = ctl.json(&["ipam", "release", &ipv6, "--force"]);
    assert_eq!(forced["addresses"], json!([ipv6]));
    lost.destroy();
    wait_until("the veth pair's end", || node.pod_links().is_empty());
    let scene = Scene { node: &node, ctl: &ctl };
    let block = &store.backend().list("blocks/ipv4/", None).unwrap()[0].key;
    let change = |key: &str, value: Value| {
        scene.change(block, |block| block["taken"][&ipv4][key] = value);
    };
    let other = node.sandbox("other");
    change("netns", json!(other.netns_path()));
    release("its network namespace");
    change("netns", Value::Null);
    change("node", json!("another"));
    release("is on node another");
    change("node", json!("node-under-test"));

    assert_eq!(ctl.json(&["ipam", "release", &ipv4])["addresses"], json!([ipv4]));
    assert_eq!(ctl.json(&["ipam", "show", &ipv4])["state"], "free");
}

#[test]
fn what_another_plugin_gave_or_another_node_has_is_left_to_them() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["cniVersion"] = json!("1.0.0");
    network["ipam"] = json!({"type": "static", "addresses": [{"address": "10.9.0.5/32"}]});
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    let plugins = margay_tests::node::reference_plugin_directory();
    let add = pod.invocation("ADD", &network).env("CNI_PATH", plugins.to_str().unwrap());
    add.execute().success();
    let store = node.store();
    let mut elsewhere = store.every_endpoint().unwrap().pop().unwrap();
    elsewhere.node = "another".to_owned();
    elsewhere.attachment = pod.attachment("podnet", "eth1");
    store.put_endpoint(&elsewhere).unwrap();

    let of_static = ctl.run(&["ipam", "release", "podnet/a/eth0", "--force"]);
    let of_another = ctl.run(&["ipam", "release", "podnet/a/eth1", "--force"]);

    assert!(of_static.stderr.contains("another IPAM plugin"), "{of_static:?}");
    assert!(of_another.stderr.contains("node another"), "{of_another:?}");
    assert_eq!(store.every_endpoint().unwrap().len(), 2);
}

struct Scene<'a> {
    node: &'a Node,
    ctl: &'a Ctl<'a>,
}

impl Scene<'_> {
    fn check(&self, code: i32) -> Value {
        let Printed { stdout, stderr, code: found } =
            self.ctl.run(&["ipam", "check", "--settle", "0.2", "-o", "json"]);
        assert_eq!(found, code, "{stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap()
    }

    fn change(&self, key: &str, change: impl FnOnce(&mut Value)) -> Revision {
        let store = self.node.store();
        let stored = store.backend().get(key).unwrap().unwrap();
        let mut record: Value = serde_json::from_slice(&stored.value).unwrap();
        change(&mut record);
        store.backend().update(key, record.to_string().as_bytes(), stored.revision).unwrap()
    }
}

fn kinds(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect()
}
