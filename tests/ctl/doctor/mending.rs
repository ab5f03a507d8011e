//! `--fix` leaves alone what a verb is at work on.

use std::fs;

use margay::lock::Lock;
use margay::naming;
use margay_tests::Node;
use margay_tests::ctl::Ctl;

use super::{Diagnosis, end, host_veth, node_with_a_pod};

#[test]
fn what_a_verb_is_at_work_on_is_left_to_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (ctl, pod, result) = node_with_a_pod(&node, &network);
    let gone = node.sandbox("gone");
    gone.add(&network);
    let locks = [&pod, &gone].map(|pod| {
        Lock::take(&node.path("run"), &naming::host_veth(&pod.attachment("podnet", "eth0")))
            .unwrap()
    });
    end(&node, gone);
    node.run(&["tc", "qdisc", "del", "dev", host_veth(&result), "clsact"]);

    let busy = Diagnosis::with(&ctl, &["--fix"]);

    busy.assert_found("endpoint-program", "from_pod");
    busy.assert_found("endpoint-sandbox-gone", "gone");
    let at_work = |done: &&str| done.contains("podnet/a/") || done.contains("podnet/gone/");
    assert!(!busy.done().iter().any(at_work), "{busy:#?}");
    drop(locks);
    Diagnosis::with(&ctl, &["--fix"]).assert_only(&[]);
}

#[test]
fn blocks_of_which_other_nodes_know_something_else_are_named_and_put_right() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    let store = node.store();
    let placements = store.backend().list("placements/", None).unwrap();
    for (placement, value) in placements.iter().zip(["", r#"{"cidr":"::/122","node":"else"}"#]) {
        let value = value.as_bytes();
        store.backend().update(&placement.key, value, placement.revision).unwrap();
    }
    let blocks = store.misplaced_blocks().unwrap();
    assert_eq!(blocks.len(), 2);

    let diagnosis = Diagnosis::of(&ctl);
    let mended = Diagnosis::with(&ctl, &["--fix"]);

    for block in blocks {
        diagnosis.assert_found("block-misplaced", &block.to_string());
        assert!(mended.done().iter().any(|done| done.contains(&block.to_string())), "{mended:#?}");
    }
    Diagnosis::of(&ctl).assert_only(&[]);
}

#[test]
fn what_could_not_be_looked_at_is_a_finding_and_keeps_nothing_else_from_being_looked_at() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    node.run(&["ip", "link", "set", "uplink0", "mtu", "1400"]);
    let plugins = margay_tests::node::plugin_directory();
    let mut command =
        ctl.command(&["doctor", "-o", "json", "--bin-dir", plugins.to_str().unwrap()]);

    // The second request of netlink is for the routes.
    let diagnosis = Diagnosis::by(command.env("FAILPOINTS", "netlink=1*off->1*return(12)"));

    diagnosis.assert_found("not-looked-at", "cannot be looked at: ");
}

#[test]
fn what_keeps_it_from_mending_is_said_beside_what_is_left() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    let gone = node.sandbox("gone").attachment("podnet", "eth0");
    let directory = node.path("state/deletions");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(naming::host_veth(&gone)), gone.to_string()).unwrap();
    let database = node.path("state/margay.db");
    fs::write(&database, "this is no database, whatever its name says".repeat(100)).unwrap();

    let mended = Diagnosis::with(&ctl, &["--fix"]);

    mended.assert_found("deletions-put-off", "podnet/gone/eth0");
    let failed = mended.document["failed"].to_string();
    assert!(failed.contains("upkeep: "), "{mended:#?}");
}
