//! A process that dies, or a disk that fills up, at every write there is.

use super::*;
use crate::testing::{Fault, Faulty};

const FAULTS: [Fault; 3] = [Fault::CrashBefore, Fault::CrashAfter, Fault::FailOnce];

/// What is there before the process that fails starts.
type Prelude = fn(&Store, &[Pool]);
/// What the process does that fails.
type Story = fn(&Store, &[Pool]) -> Result<(), IpamError>;

#[test]
fn an_assign_that_dies_at_any_write_leaks_nothing() {
    let first: Prelude = |_, _| {};
    let crowded: Prelude = |store, pools| fill(store, pools, 0..13);
    let story: Story = |store, pools| node(store, "a").assign(&request("x", pools)).map(drop);
    assert!(at_every_write(first, story) >= 8, "pools, claims, handle and blocks are writes");
    assert!(at_every_write(crowded, story) >= 3);
}

#[test]
fn an_assign_of_requested_addresses_that_dies_at_any_write_leaks_nothing() {
    let story: Story = |store, pools| {
        let ips = ["10.0.0.3", "10.0.0.9", "fd00::9"];
        node(store, "a").assign(&requesting("x", pools, &ips)).map(drop)
    };
    assert!(at_every_write(|_, _| {}, story) >= 8);
}

#[test]
fn an_assign_that_fails_undoes_what_it_had_begun() {
    for at_write in 0.. {
        let memory = Memory::new();
        let sound = Store::new(memory.clone());
        let pools = [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)];
        let faulty = std::sync::Arc::new(Faulty::new(memory, Fault::FailOnce, at_write));

        let outcome = node(&Store::new(faulty.clone()), "a").assign(&request("x", &pools));

        match outcome {
            Ok(ips) => assert_eq!(node(&sound, "a").assigned(&attachment("x")).unwrap(), ips),
            Err(_) => assert_nothing_held(&sound),
        }
        if !faulty.has_struck() {
            return;
        }
    }
}

#[test]
fn a_release_that_dies_at_any_write_leaks_nothing() {
    let full: Prelude = |store, pools| {
        node(store, "a").assign(&request("x", pools)).unwrap();
        fill(store, pools, 0..13);
    };
    let story: Story = |store, _| node(store, "a").release(&attachment("x")).map(drop);
    assert!(at_every_write(full, story) >= 4);
}

#[test]
fn a_reclaim_that_dies_at_any_write_leaks_nothing() {
    let before: Prelude = |store, pools| {
        for container in ["x", "y"] {
            node(store, "a").assign(&request(container, pools)).unwrap();
        }
    };
    let story: Story =
        |store, _| Ipam::new(store, "a", "boot-2").reclaim_earlier_boots(&|_| false).map(drop);
    at_every_write(before, story);
}

/// Runs the story with a fault at its first write, its second, and so on until it gets through,
/// and returns how many writes it has. After each, what a runtime does next must set things right.
fn at_every_write(prelude: Prelude, story: Story) -> u64 {
    let mut writes = 0;
    for fault in FAULTS {
        for at_write in 0.. {
            assert!(at_write < 100, "the story ends");
            let memory = Memory::new();
            // 14 addresses in 4 blocks of IPv4, 15 of IPv6.
            let pools = [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)];
            let sound = Store::new(memory.clone());
            prelude(&sound, &pools);
            let faulty = std::sync::Arc::new(Faulty::new(memory, fault, at_write));

            let outcome = story(&Store::new(faulty.clone()), &pools);

            if !faulty.has_struck() {
                outcome.unwrap();
                writes = writes.max(at_write);
                break;
            }
            let context = format!("{fault:?} at write {at_write}");
            taken(&sound);
            recover(&sound, &pools, &context);
        }
    }
    writes
}

fn recover(store: &Store, pools: &[Pool], context: &str) {
    let ipam = node(store, "a");
    ipam.release(&attachment("x")).unwrap();
    assert!(!taken(store).values().any(|holder| *holder == attachment("x")), "{context}");

    ipam.assign(&request("x", pools)).unwrap_or_else(|error| panic!("{error}, {context}"));
    for attachment in ipam.attachments("net").unwrap() {
        ipam.release(&attachment).unwrap();
    }
    assert_nothing_held(store);
    fill(store, pools, 100..114);
    let overfull = AssignRequest { ipv6: false, ..request("over", pools) };
    assert!(matches!(ipam.assign(&overfull), Err(IpamError::Exhausted { .. })), "{context}");
    assert_eq!(taken(store).len(), 28, "every address can be used again, {context}");
}

fn fill(store: &Store, pools: &[Pool], containers: std::ops::Range<u32>) {
    for container in containers {
        node(store, "a").assign(&request(container, pools)).unwrap();
    }
}
