//! Nodes that are gone for good.

use super::crash::endpoint;
use super::*;
use crate::records::Heartbeat;
use crate::testing::{Fault, Faulty};
use crate::{Caution, RemoveNodeError, RemovedNode, remove_node};

/// All that there is: 6 addresses of IPv4, 7 of IPv6, in two blocks each.
fn pools() -> [Pool; 2] {
    [pool("10.0.0.0/29", 30), pool("fd00::/125", 126)]
}

/// A cluster where nodes a and b have a block of each family each, an address of the other's, and two of
/// their own.
fn cluster() -> (Memory, Store) {
    let memory = Memory::new();
    let store = Store::new(memory.clone());
    let (a, b) = (node(&store, "a"), node(&store, "b"));
    a.assign(&request("a1", &pools())).unwrap();
    b.assign(&request("b1", &pools())).unwrap();
    a.assign(&requesting_of(&store, "b", "a2")).unwrap();
    b.assign(&requesting_of(&store, "a", "b2")).unwrap();
    a.assign(&request("a3", &pools())).unwrap();
    b.assign(&request("b3", &pools())).unwrap();
    for container in ["a1", "a2", "a3"] {
        store.put_endpoint(&endpoint(container, BOOT)).unwrap();
    }
    let other = Endpoint { node: "b".to_owned(), ..endpoint("b1", BOOT) };
    store.put_endpoint(&other).unwrap();
    for name in ["a", "b"] {
        store.update_node(name, |node| node.boot_id = BOOT.to_owned()).unwrap();
        store.put_heartbeat(&Heartbeat { node: name.to_owned(), at: 1 }).unwrap();
    }
    (memory, store)
}

#[test]
fn a_node_that_is_removed_leaves_nothing_and_others_keep_what_they_have() {
    let (_, store) = cluster();
    let held_by = |name: &str| {
        let mut held = taken(&store);
        held.retain(|_, attachment| attachment.container_id().starts_with(&format!("c{name}")));
        held
    };
    let (of_a, of_b) = (held_by("a"), held_by("b"));
    assert_eq!((of_a.len(), of_b.len()), (6, 6));
    assert!(borrowed(&store, "a") > 0 && borrowed(&store, "b") > 0);

    let removed = remove_node(&store, "a", Caution::Forced).unwrap();

    assert_eq!(removed.endpoints.len(), 3);
    assert_eq!(removed.released.iter().map(|(_, ips)| ips.len()).sum::<usize>(), of_a.len());
    assert!(!removed.blocks.is_empty() && removed.heartbeat && removed.record);
    assert_nothing_of_a(&store);
    assert_eq!(taken(&store), of_b);
    assert!(remove_node(&store, "a", Caution::Forced).unwrap().is_empty(), "a second time");
    for container in 0..3 {
        node(&store, "c").assign(&request(container, &pools())).unwrap();
    }
    assert_eq!(taken(&store).len(), 12, "all IPv4 addresses are out again, each once");
    let back = node(&store, "a").assign(&request("again", &pools()));
    assert!(matches!(back, Err(IpamError::Exhausted { .. })));
}

#[test]
fn a_block_that_was_given_up_and_is_lent_out_as_a_whole_is_not_free() {
    let store = store();
    let pools = [pool("10.0.0.0/29", 30)];
    let (a, b, c) = (node(&store, "a"), node(&store, "b"), node(&store, "c"));
    let had = a.assign(&request("a1", &pools)).unwrap()[0];
    a.release(&attachment("a1")).unwrap();
    let lent = pools[0].block_of(had);
    let in_lent = |ip: &str| lent.contains(super::ip(ip));
    let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
    let of_lent: Vec<&str> = all.into_iter().filter(|ip| in_lent(ip)).collect();
    b.assign(&requesting("b1", &pools, &of_lent)).unwrap();
    remove_node(&store, "a", Caution::Forced).unwrap();
    assert_eq!(c.has_free(&pools, false).unwrap(), [true], "the other block is nobody's");

    b.assign(&request("b2", &pools)).unwrap();

    assert_eq!(c.has_free(&pools, true).unwrap(), [false], "what is left is another node's");
    assert_eq!(c.has_free(&pools, false).unwrap(), [true]);
    let strict = AssignRequest { strict_affinity: true, ..request("c1", &pools) };
    assert!(matches!(c.assign(&strict), Err(IpamError::Exhausted { .. })));
}

#[test]
fn what_a_removed_node_had_rests_before_others_get_it() {
    let (store, pools) = (store(), [pool("10.0.0.0/29", 29)]);
    let had = node(&store, "a").assign(&request("one", &pools)).unwrap();
    remove_node(&store, "a", Caution::Forced).unwrap();

    let next = node(&store, "b").assign(&request("two", &pools)).unwrap();

    assert_ne!(next, had);
}

#[test]
fn a_removal_that_dies_at_any_write_is_brought_to_its_end_by_the_next() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::FailOnce] {
        for at_write in 0.. {
            let (memory, sound) = cluster();
            let faulty = std::sync::Arc::new(Faulty::new(memory, fault, at_write));

            let outcome = remove_node(&Store::new(faulty.clone()), "a", Caution::Forced);

            taken(&sound);
            let of_b = node(&sound, "b").attachments("net").unwrap();
            assert_eq!(of_b.len(), 3, "{fault:?} at write {at_write}");
            if !faulty.has_struck() {
                outcome.unwrap();
                assert!(at_write > 15, "endpoints, addresses, blocks and records are writes");
                break;
            }
            assert!(outcome.is_err());
            if sound.node("a").unwrap().is_none() {
                assert_nothing_of_a(&sound);
            }
            remove_node(&sound, "a", Caution::Forced).unwrap();
            assert_nothing_of_a(&sound);
            for container in 0..3 {
                node(&sound, "c").assign(&request(container, &pools())).unwrap();
            }
            assert_eq!(taken(&sound).len(), 12, "{fault:?} at write {at_write}");
        }
    }
}

#[test]
fn a_node_that_writes_heartbeats_is_not_removed() {
    let (_, store) = cluster();
    let before = store.backend().revision().unwrap();
    let refused = |caution| {
        let outcome = remove_node(&store, "a", caution);
        assert!(matches!(outcome, Err(RemoveNodeError::Alive { .. })), "{outcome:?}");
    };

    std::thread::scope(|scope| {
        let observed = scope.spawn(|| refused(Caution::Observe(Duration::from_secs(3600))));
        // However far its clock is off.
        for at in 2.. {
            store.put_heartbeat(&Heartbeat { node: "a".to_owned(), at }).unwrap();
            if observed.is_finished() {
                break;
            }
            std::thread::yield_now();
        }
    });
    let at = super::super::clock::now_ms() / 1_000;
    store.put_heartbeat(&Heartbeat { node: "a".to_owned(), at }).unwrap();
    refused(Caution::default());

    let changed = [keys::BLOCKS, keys::HANDLES, keys::ENDPOINTS, keys::NODES]
        .into_iter()
        .flat_map(|prefix| store.backend().list(prefix, None).unwrap())
        .filter(|record| record.revision > before);
    assert_eq!(changed.count(), 0);
}

#[test]
fn a_node_that_is_silent_is_removed() {
    let (_, store) = cluster();

    let removed = remove_node(&store, "a", Caution::Observe(Duration::from_millis(50))).unwrap();

    assert!(removed.record && store.node("a").unwrap().is_none());
}

#[test]
fn slots_that_no_handle_leads_to_go_with_their_node() {
    let (_, store) = cluster();
    for handle in node(&store, "a").attachments("net").unwrap() {
        let key = keys::handle(&handle);
        let along = [crate::Along::remove(keys::on("a", &key))];
        store.backend().write(&key, crate::Write::Delete(None), &along).unwrap();
    }
    let of_a = |slot: &crate::Slot| slot.node == "a";
    let slots = |store: &Store| {
        let blocks = store.ledger().unwrap().blocks.into_iter();
        blocks.flat_map(|block| block.taken.into_values()).filter(of_a).count()
    };
    assert_eq!((slots(&store), borrowed(&store, "a") > 0), (6, true));

    let removed = remove_node(&store, "a", Caution::Forced).unwrap();

    assert_eq!(removed.released.iter().map(|(_, ips)| ips.len()).sum::<usize>(), 6);
    assert_nothing_of_a(&store);
    assert_eq!(taken(&store).len(), 6, "those of the other node");
    assert!(remove_node(&store, "a", Caution::Forced).unwrap().is_empty(), "a second time");
}

#[test]
fn a_node_that_nobody_knows_is_an_empty_report() {
    let (_, store) = cluster();

    let removed = remove_node(&store, "else", Caution::Forced).unwrap();

    assert_eq!(removed, RemovedNode::default());
}

#[test]
fn a_node_is_known_as_long_as_there_is_anything_of_it() {
    let (_, store) = cluster();
    assert!(!store.has_anything_of("else").unwrap());
    let remove_all = |prefix: &str| {
        for key in store.backend().keys(prefix).unwrap() {
            assert!(store.has_anything_of("a").unwrap(), "{key} is there");
            store.backend().delete(&key, None).unwrap();
        }
    };
    // Slots, of others in its blocks and its own in others', go last.
    for prefix in ["nodes/", "alive/", "on/a/", "open/a/", "endpoints/", "handles/"] {
        remove_all(prefix);
    }
    for prefix in [Family::V4, Family::V6].map(keys::affinities) {
        remove_all(&prefix);
    }
    let blocks = [Family::V4, Family::V6].map(keys::blocks);
    blocks.iter().for_each(|prefix| remove_all(prefix));
    assert!(!store.has_anything_of("a").unwrap());
}

#[test]
fn a_record_that_does_not_decode_may_be_of_any_node() {
    let (_, store) = cluster();

    store.backend().create("endpoints/net/damaged/eth0", b"{").unwrap();

    assert!(store.has_anything_of("else").unwrap());
}

/// How many addresses a node has in blocks of others.
fn borrowed(store: &Store, name: &str) -> usize {
    let families = [Family::V4, Family::V6].into_iter();
    let blocks =
        families.flat_map(|family| store.read_all::<Block>(&keys::blocks(family)).unwrap());
    let of_others = blocks.filter(|block| block.node != name);
    of_others.map(|block| block.taken.values().filter(|slot| slot.node == name).count()).sum()
}

/// Asks for addresses out of blocks of this node.
fn requesting_of(store: &Store, owner: &str, container: &str) -> AssignRequest {
    let families = [Family::V4, Family::V6].into_iter();
    let blocks =
        families.flat_map(|family| store.read_all::<Block>(&keys::blocks(family)).unwrap());
    let vacancies = blocks.filter(|block| block.node == owner).filter_map(|block| {
        block.vacancy(|ip| pools().iter().any(|pool| pool.cidr.contains(ip) && pool.hands_out(ip)))
    });
    let requested = vacancies.map(|vacancy| vacancy.ip).collect();
    AssignRequest { requested, ..request(container, &pools()) }
}

fn assert_nothing_of_a(store: &Store) {
    assert_eq!(store.endpoints_on("a").unwrap(), []);
    assert_eq!(node(store, "a").holdings().unwrap(), []);
    assert_eq!(store.node("a").unwrap(), None);
    assert!(store.heartbeats().unwrap().iter().all(|(beat, _)| beat.node != "a"));
    for family in [Family::V4, Family::V6] {
        let affinities = store.read_all::<Affinity>(&keys::affinities(family)).unwrap();
        assert!(affinities.iter().all(|affinity| affinity.node != "a"));
        assert_eq!(store.backend().list(&keys::open_of("a", family), None).unwrap(), []);
        for block in store.read_all::<Block>(&keys::blocks(family)).unwrap() {
            assert_ne!(block.node, "a");
            assert!(block.taken.values().all(|slot| slot.node != "a"));
        }
    }
}

#[test]
fn a_claim_of_a_block_that_was_given_up_before_ends_by_a_write_of_the_block() {
    let store = store();
    let pools = [pool("10.0.0.0/30", 30)];
    let (a, b) = (node(&store, "a").cool_down(Duration::ZERO), node(&store, "b"));
    let had = a.assign(&request("a1", &pools)).unwrap()[0];
    let lent = b.assign(&request("b1", &pools)).unwrap()[0];
    let block = pools[0].block_of(had);
    remove_node(&store, "a", Caution::Forced).unwrap();
    // Claimed again, and cut short before the block was written.
    let claim = Affinity { block, node: "a".to_owned() };
    store.create(&keys::affinity(&block), &claim).unwrap();
    let before = store.read::<Block>(&keys::block(&block)).unwrap().unwrap().revision;

    remove_node(&store, "a", Caution::Forced).unwrap();

    let after = store.read::<Block>(&keys::block(&block)).unwrap().unwrap();
    assert_ne!(after.revision, before, "whoever holds the block as it was loses");
    assert!(store.read::<Affinity>(&keys::affinity(&block)).unwrap().is_none());
    assert_eq!(taken(&store).into_keys().collect::<Vec<_>>(), [lent]);
    node(&store, "c").cool_down(Duration::ZERO).assign(&request("c1", &pools)).unwrap();
}
