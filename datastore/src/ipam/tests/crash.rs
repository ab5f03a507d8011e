//! A process that dies, or a disk that fills up, at every write there is.

use super::*;
use crate::records::{Bandwidth, EndpointState};
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
fn giving_up_blocks_that_dies_at_any_write_leaks_nothing() {
    let emptied: Prelude = |store, pools| {
        fill(store, pools, 0..13);
        for container in 0..13 {
            node(store, "a").release(&attachment(container)).unwrap();
        }
    };
    let story: Story =
        |store, _| node(store, "a").cool_down(Duration::ZERO).tend_blocks().map(drop);
    assert!(at_every_write(emptied, story) >= 18, "three writes for each of six blocks");
}

#[test]
fn giving_up_blocks_that_died_is_brought_to_its_end_by_the_next() {
    for at_write in 0.. {
        let memory = Memory::new();
        let sound = Store::new(memory.clone());
        let pools = [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)];
        fill(&sound, &pools, 0..13);
        for container in 0..13 {
            node(&sound, "a").release(&attachment(container)).unwrap();
        }
        let faulty = std::sync::Arc::new(Faulty::new(memory, Fault::CrashAfter, at_write));
        let give_up =
            |store: &Store| node(store, "a").cool_down(Duration::ZERO).tend_blocks().map(drop);

        let outcome = give_up(&Store::new(faulty.clone()));
        give_up(&sound).unwrap();

        for family in [Family::V4, Family::V6] {
            let claims = sound.read_all::<Affinity>(&keys::affinities(family)).unwrap();
            assert_eq!(claims.len(), 1, "at write {at_write}: {claims:?}");
        }
        if !faulty.has_struck() {
            outcome.unwrap();
            return;
        }
    }
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

#[test]
fn a_reclaim_that_dies_at_any_write_is_repeated_with_the_endpoints() {
    for at_write in 0.. {
        let memory = Memory::new();
        let sound = Store::new(memory.clone());
        let pools = [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)];
        for container in ["x", "y"] {
            node(&sound, "a").assign(&request(container, &pools)).unwrap();
            sound.put_endpoint(&endpoint(container, BOOT)).unwrap();
        }
        let faulty = std::sync::Arc::new(Faulty::new(memory, Fault::CrashAfter, at_write));
        let reclaim = |store: &Store| {
            Ipam::new(store, "a", "boot-2").reclaim_earlier_boots(&|_| false).map(drop)
        };

        let outcome = reclaim(&Store::new(faulty.clone()));
        reclaim(&sound).unwrap();

        assert_nothing_held(&sound);
        assert_eq!(sound.endpoints("net").unwrap(), [], "at write {at_write}");
        if !faulty.has_struck() {
            outcome.unwrap();
            return;
        }
    }
}

#[test]
fn a_reclaim_leaves_the_endpoint_of_a_later_boot_alone() {
    let store = store();
    let pools = [pool("10.0.0.0/28", 30)];
    node(&store, "a").assign(&request("x", &pools)).unwrap();
    store.put_endpoint(&endpoint("x", "boot-2")).unwrap();

    Ipam::new(&store, "a", "boot-2").reclaim_earlier_boots(&|_| false).unwrap();

    assert_eq!(store.endpoints("net").unwrap().len(), 1);
}

pub(super) fn endpoint(container: &str, boot_id: &str) -> Endpoint {
    Endpoint {
        attachment: attachment(container),
        node: "a".to_owned(),
        pod: None,
        host_veth: "mgy0".to_owned(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        ips: Vec::new(),
        netns: format!("/run/netns/{container}"),
        netns_inode: None,
        boot_id: boot_id.to_owned(),
        labels: BTreeMap::new(),
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        dataplane: "ebpf".to_owned(),
        attach: None,
        answer_any_arp: false,
        created_at: 0,
        ready_at_boot_us: 0,
        state: EndpointState::Ready,
    }
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
