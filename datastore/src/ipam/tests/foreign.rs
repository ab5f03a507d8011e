//! Records that decode, under a key that is not theirs or with what no margay writes: an error that
//! names the key, never somebody else's addresses, an endless search or a panic.

use serde_json::{Value, json};

use super::*;
use crate::StoreError;
use crate::backend::Backend;

#[test]
fn claims_that_name_other_blocks_than_their_keys_end_the_search() {
    let blocks = ["10.0.0.0-30", "10.0.0.4-30"].map(|block| format!("affinities/ipv4/{block}"));
    let store = holding(
        blocks.each_ref().map(|key| (key.as_str(), json!({ "block": "10.9.0.0/30", "node": "b" }))),
    );

    let outcome = node(&store, "a").assign(&request(1, &[pool("10.0.0.0/29", 30)]));

    assert_named(outcome, "affinities/ipv4/10.0.0.");
    assert_nothing_held(&store);
}

#[test]
fn a_block_of_another_range_gives_nothing() {
    let store = holding([
        ("affinities/ipv4/10.0.0.0-30", json!({ "block": "10.0.0.0/30", "node": "a" })),
        ("blocks/ipv4/10.0.0.0-30", json!({ "cidr": "10.9.0.0/30", "node": "a", "taken": {} })),
    ]);

    let outcome = node(&store, "a").assign(&request(1, &[pool("10.0.0.0/30", 30)]));

    assert_named(outcome, "blocks/ipv4/10.0.0.0-30");
}

#[test]
fn somebody_elses_handle_releases_nothing() {
    let store = store();
    let pools = [pool("10.0.0.0/24", 26)];
    let ipam = node(&store, "a");
    let held = ipam.assign(&request("owner", &pools)).unwrap();
    let handle = store.backend().get("handles/net/cowner/eth0").unwrap().unwrap();
    store.backend().create("handles/net/cthief/eth0", &handle.value).unwrap();

    assert_named(ipam.release(&attachment("thief")), "handles/net/cthief/eth0");
    assert_named(ipam.assigned(&attachment("thief")), "handles/net/cthief/eth0");

    assert_eq!(ipam.assigned(&attachment("owner")).unwrap(), held);
}

#[test]
fn ranges_that_are_no_blocks_are_refused() {
    for block in ["::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/116", "10.0.0.1/30"] {
        let store = holding([(
            "handles/net/c1/eth0",
            json!({
                "attachment": "net/c1/eth0", "assignment": "1", "node": "a", "boot_id": BOOT,
                "blocks": [block], "releasing": true,
            }),
        )]);

        assert_named(node(&store, "a").release(&attachment(1)), "handles/net/c1/eth0");
    }
}

#[test]
fn a_block_with_an_address_from_elsewhere_is_refused() {
    let store = holding([
        ("affinities/ipv4/10.0.0.0-30", json!({ "block": "10.0.0.0/30", "node": "a" })),
        (
            "blocks/ipv4/10.0.0.0-30",
            json!({
                "cidr": "10.0.0.0/30", "node": "a", "taken": {},
                "released": [{ "ip": "10.9.0.1", "at_ms": 1 }],
            }),
        ),
    ]);

    let outcome = node(&store, "a").assign(&request(1, &[pool("10.0.0.0/30", 30)]));

    assert_named(outcome, "blocks/ipv4/10.0.0.0-30");
}

#[test]
fn an_endpoint_and_a_node_are_their_keys_own() {
    let endpoint = json!({
        "attachment": "net/other/eth0", "node": "a", "host_veth": "mgy0", "netns": "/n",
        "pod_mac": "02:00:00:00:00:01", "host_mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500, "ips": [],
        "boot_id": BOOT, "dataplane": "ebpf", "created_at": 1, "state": "ready",
    });
    let store = holding([
        ("endpoints/net/c1/eth0", endpoint),
        ("nodes/a", json!({ "name": "b", "boot_id": BOOT })),
    ]);

    let error = store.endpoint(&attachment(1)).unwrap_err();
    assert!(error.to_string().contains("endpoints/net/c1/eth0"), "{error}");
    assert!(store.endpoints("net").is_err());
    assert!(store.node("a").unwrap_err().to_string().contains("nodes/a"));
    assert!(
        store.delete_endpoint(&attachment(1), "a").unwrap(),
        "a DEL is not kept from cleaning up"
    );
}

fn holding<'a>(records: impl IntoIterator<Item = (&'a str, Value)>) -> Store {
    let memory = Memory::new();
    for (key, value) in records {
        memory.create(key, value.to_string().as_bytes()).unwrap();
    }
    Store::new(memory)
}

/// It failed because of the record under a key that begins so.
fn assert_named<T: std::fmt::Debug>(outcome: Result<T, IpamError>, wanted: &str) {
    match outcome {
        Err(IpamError::Store(StoreError::Decode { key, .. })) => {
            assert!(key.starts_with(wanted), "{key} is named, not {wanted}");
        }
        other => panic!("expected an error that names {wanted}, got {other:?}"),
    }
}
