//! `margayctl node`.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use margay_datastore::{AssignRequest, Heartbeat, Ipam, OverlayEnd, Pool, Store};
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use serde_json::json;

use crate::fields::assert_fields;

#[test]
fn nodes_are_listed_with_what_they_have_and_whether_they_are_heard() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    other_node(&node.store(), 0);

    let listed = ctl.json(&["node", "list"]);

    assert_fields(&listed, "datastore nodes");
    assert_eq!(listed["datastore"], "local");
    let [this, other] = [1, 0].map(|index| &listed["nodes"][index]);
    assert_fields(
        this,
        "addresses agent blocks boot_id endpoints heartbeat_at is_this name overlay used",
    );
    assert_eq!((&this["is_this"], &this["agent"]), (&json!(true), &json!("none")));
    assert_eq!([&this["blocks"], &this["used"], &this["endpoints"]], [2, 2, 1]);
    assert_eq!((&other["agent"], &other["used"]), (&json!("silent"), &json!(1)));
    assert_eq!(other["addresses"], json!(["192.0.2.7/24"]));
    assert_eq!(other["overlay"]["addresses"], json!(["10.244.0.200"]));
    other_node(&node.store(), now());
    assert_eq!(ctl.json(&["node", "list"])["nodes"][0]["agent"], "heard");
    assert!(ctl.text(&["node", "list"]).contains("(this)"));
}

#[test]
fn a_node_that_is_gone_is_deleted_on_purpose_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let had = other_node(&node.store(), 0);

    let asked = ctl.run(&["node", "delete", "another"]);
    let this = ctl.run(&["node", "delete", "node-under-test", "--yes", "--force"]);
    let unknown = ctl.run(&["node", "delete", "no-such"]);

    assert_eq!((asked.code, this.code, unknown.code), (1, 1, 1));
    // Before anything is asked, or looked at for a minute.
    assert!(unknown.stderr.contains("no node \"no-such\""), "{unknown:?}");
    assert!(asked.stderr.contains("1 addresses") && asked.stderr.contains("--yes"), "{asked:?}");
    assert_eq!(ctl.json(&["node", "list"])["nodes"].as_array().unwrap().len(), 2);
    let deleted = ctl.json(&["node", "delete", "another", "--yes", "--force"]);
    assert_fields(&deleted, "addresses blocks endpoints node");
    assert_eq!(deleted["addresses"], json!([had]));
    assert_eq!(ctl.json(&["node", "list"])["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(ctl.json(&["ipam", "show", &had.to_string()])["state"], "free");
}

#[test]
fn a_node_whose_agent_is_heard_is_not_deleted() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    other_node(&node.store(), now());

    let refused = ctl.run(&["node", "delete", "another", "--yes"]);

    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("is alive"), "{refused:?}");
    assert_eq!(ctl.json(&["node", "list"])["nodes"].as_array().unwrap().len(), 2);
}

/// Another node of the same datastore, with an address and a heartbeat of this moment.
fn other_node(store: &Store, at: u64) -> IpAddr {
    let node = "another".to_owned();
    store.put_heartbeat(&Heartbeat { node: node.clone(), at }).unwrap();
    let change = |node: &mut margay_datastore::Node| {
        node.boot_id = "its-boot".to_owned();
        node.addresses = vec!["192.0.2.7/24".parse().unwrap()];
        node.overlay =
            Some(OverlayEnd { mac: [2; 6], addresses: vec!["10.244.0.200".parse().unwrap()] });
    };
    store.update_node(&node, change).unwrap();
    let attachment = margay_datastore::Attachment::new("podnet", "elsewhere", "eth0").unwrap();
    let ipam = Ipam::new(store, &node, "its-boot");
    if let Some(held) = ipam.assigned(&attachment).unwrap().first() {
        return *held;
    }
    let gateway = Some("10.244.0.1".parse().unwrap());
    let request = AssignRequest {
        attachment,
        pod: None,
        netns: None,
        pools: vec![Pool { gateway, ..Pool::new("10.244.0.0/24".parse().unwrap()) }],
        ipv4: true,
        ipv6: false,
        requested: Vec::new(),
        strict_affinity: false,
    };
    ipam.assign(&request).unwrap()[0]
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
