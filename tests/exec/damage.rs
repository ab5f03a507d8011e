//! A DEL with a datastore that somebody, or a disk, has damaged.

use std::fs;

use margay_datastore::Store;
use margay_tests::residue::assert_only;
use margay_tests::{Node, Pod};
use serde_json::Value;

#[test]
fn a_del_with_a_damaged_database_takes_away_what_is_on_the_node_and_says_so() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);
    let database = node.path("state/margay.db");
    for (text, expected) in [("no database at all", "damaged"), ("", "")] {
        for suffix in ["", "-wal", "-shm"] {
            drop(fs::remove_file(format!("{}{suffix}", database.display())));
        }
        match text {
            // Not even a file.
            "" => fs::create_dir(&database).unwrap(),
            text => fs::write(&database, text.repeat(1000)).unwrap(),
        }

        let (code, message) = del(&pod, &network);

        assert_eq!(code, 5, "{message}");
        assert!(message.contains(expected) && message.contains("margay.db"), "{message}");
        assert_nothing_in_the_kernel(&node);
    }
    fs::remove_dir(&database).unwrap();
    pod.del(&network);
}

#[test]
fn a_del_with_a_damaged_record_of_its_own_takes_away_what_is_on_the_node_and_names_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    for key in ["handles/podnet/a/eth0", "endpoints/podnet/a/eth0"] {
        let pod = node.sandbox("a");
        pod.add(&network);
        damage(&node.store(), key);

        let (code, message) = del(&pod, &network);

        assert_eq!(code, 5, "{message}");
        assert!(message.contains(key), "{message}");
        assert_nothing_in_the_kernel(&node);
        if key.starts_with("handles") {
            node.store().backend().delete(key, None).unwrap();
            let store = node.store();
            let slots: Vec<_> = store.ledger().unwrap().blocks;
            for ip in slots.iter().flat_map(|block| block.taken.keys()) {
                let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
                assert!(ipam.release_orphan(*ip).unwrap().is_some());
            }
        }
        pod.del(&network);
        pod.destroy();
    }
    assert_only(&node, &[], "after DEL");
}

#[test]
fn a_damaged_record_of_the_node_keeps_no_pod_from_going() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);
    damage(&node.store(), "nodes/node-under-test");

    pod.del(&network);

    assert_only(&node, &[], "after DEL");
    let (code, message) = pod.invocation("ADD", &network).execute().error();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("nodes/node-under-test"), "{message}");
}

fn del(pod: &Pod<'_>, network: &Value) -> (u64, String) {
    pod.invocation("DEL", network).execute().error()
}

fn damage(store: &Store, key: &str) {
    let found = store.backend().get(key).unwrap().unwrap();
    store.backend().update(key, b"{}", found.revision).unwrap();
}

fn assert_nothing_in_the_kernel(node: &Node) {
    assert_eq!(node.pod_links(), []);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
}
