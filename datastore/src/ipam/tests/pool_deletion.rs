//! Pools that are deleted while others assign from them, release, give up blocks or go.

use std::sync::Arc;

use super::super::clock::Patience;
use super::*;
use crate::testing::etcd::EtcdCluster;
use crate::testing::{Fault, Faulty, Hooked};
use crate::{Backend, Caution, EtcdConf, Sqlite, remove_node};

type Story = fn(&Store) -> Result<(), IpamError>;

const ASSIGN: Story = |store| node(store, "a").assign(&request("x", &pools())).map(drop);
const DELETE: Story = |store| {
    for pool in pools() {
        match node(store, "a").delete_pool(&pool.cidr) {
            Ok(()) | Err(IpamError::PoolInUse { .. } | IpamError::UnknownPool { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
};

/// What may happen before any of this: nothing, blocks that were in use, blocks that were given up.
const PRELUDES: [Story; 3] = [
    |store| {
        for pool in pools() {
            node(store, "a").create_pool(&pool)?;
        }
        Ok(())
    },
    |store| use_and_empty(store, "a"),
    |store| {
        use_and_empty(store, "a")?;
        give_up(store, "a")?;
        use_and_empty(store, "b")?;
        give_up(store, "b")
    },
];

#[test]
fn a_pool_that_is_deleted_at_any_step_of_an_assignment_is_gone_or_in_use() {
    for prelude in PRELUDES {
        at_every_step(&memory, prelude, ASSIGN, DELETE);
    }
}

#[test]
fn an_assignment_at_any_step_of_a_deletion_finds_the_pool_closed_or_brings_it_back() {
    for prelude in PRELUDES {
        at_every_step(&memory, prelude, DELETE, ASSIGN);
    }
}

#[test]
fn a_pool_that_is_back_with_other_blocks_gives_no_address_twice() {
    let other_blocks: Story = |store| {
        DELETE(store)?;
        let other = [pool("10.0.0.0/28", 29), pool("fd00::/124", 125)];
        for container in 0..7 {
            match node(store, "b").assign(&request(format!("other-{container}"), &other)) {
                // It was in use.
                Err(IpamError::Pool(PoolError::OtherBlockSize { .. })) => {}
                outcome => drop(outcome?),
            }
        }
        Ok(())
    };
    for prelude in PRELUDES {
        at_every_step(&memory, prelude, ASSIGN, other_blocks);
    }
}

#[test]
fn a_pool_that_is_deleted_and_used_again_at_any_step_is_consistent() {
    let again: Story = |store| {
        DELETE(store)?;
        node(store, "b").assign(&request("y", &pools())).map(drop)
    };
    for prelude in PRELUDES {
        at_every_step(&memory, prelude, ASSIGN, again);
    }
}

#[test]
fn a_pool_that_is_enabled_while_it_is_deleted_is_gone_or_there_with_all_it_has() {
    let enable_and_assign: Story = |store| {
        for pool in pools() {
            drop(node(store, "b").set_pool_closed(&pool.cidr, false));
        }
        ASSIGN(store)
    };
    for prelude in PRELUDES {
        at_every_step(&memory, prelude, DELETE, enable_and_assign);
        at_every_step(&memory, prelude, DELETE, DELETE);
    }
}

#[test]
fn a_pool_whose_configuration_changes_at_any_step_is_deleted_for_all_that() {
    let change: Story = |store| {
        let changed = pools().map(|pool| Pool { nat_outgoing: true, ..pool });
        match node(store, "b").assign(&request("y", &changed)) {
            Err(IpamError::NoPool { .. }) => Ok(()),
            outcome => outcome.map(drop),
        }
    };
    at_every_step(&memory, PRELUDES[1], DELETE, change);
    at_every_step(&memory, PRELUDES[1], ASSIGN, change);
}

#[test]
fn nothing_is_left_of_a_deleted_pool_by_who_releases_gives_up_blocks_or_goes() {
    let cut_short: Story = |store| {
        PRELUDES[0](store)?;
        for at_write in [3, 4, 5] {
            let faulty = Faulty::new(store.shared_backend(), Fault::CrashBefore, at_write);
            drop(node(&Store::new(faulty), "a").assign(&request("x", &pools())));
        }
        Ok(())
    };
    let release: Story = |store| node(store, "a").release(&attachment("x")).map(drop);
    let removal: Story = |store| {
        remove_node(store, "a", Caution::Forced).map(drop).or_else(|error| match error {
            crate::RemoveNodeError::Back { .. } => Ok(()),
            error => panic!("{error}"),
        })
    };
    for prelude in [cut_short, PRELUDES[1], PRELUDES[2]] {
        for story in [release, removal, |store: &Store| give_up(store, "a")] {
            at_every_step(&memory, prelude, story, DELETE);
            at_every_step(&memory, prelude, DELETE, story);
        }
    }
}

#[test]
fn an_assignment_from_a_pool_around_one_that_is_deleted_loses_nothing() {
    let around = || [pool("10.0.0.0/27", 30), pool("fd00::/123", 126)];
    fn assign_around(store: &Store) -> Result<(), IpamError> {
        let around = [pool("10.0.0.0/27", 30), pool("fd00::/123", 126)];
        node(store, "a").assign(&request("x", &around)).map(drop)
    }
    let prelude: Story = |store| {
        PRELUDES[1](store)?;
        assign_around(store)?;
        node(store, "a").release(&attachment("x")).map(drop)
    };
    at_every_step(&memory, prelude, assign_around, DELETE);
    at_every_step(&memory, prelude, DELETE, assign_around);
    at_every_step(&memory, PRELUDES[0], assign_around, DELETE);
    assert!(around().iter().zip(pools()).all(|(outer, inner)| outer.overlaps(&inner)));
}

#[test]
fn a_deletion_that_dies_at_any_write_is_brought_to_its_end_or_taken_back() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::FailOnce] {
        for at_write in 0.. {
            let memory = Memory::new();
            let sound = Store::new(memory.clone());
            PRELUDES[1](&sound).unwrap();
            let faulty = Arc::new(Faulty::new(memory, fault, at_write));

            let outcome = DELETE(&Store::new(faulty.clone()));

            assert_consistent(&sound);
            if !faulty.has_struck() {
                outcome.unwrap();
                assert!(at_write > 10, "blocks, hints, claims and pools are writes");
                break;
            }
            assert!(outcome.is_err());
            if at_write % 2 == 0 {
                DELETE(&sound).unwrap();
                assert_eq!(sound.pools().unwrap(), []);
            }
            for pool in sound.pools().unwrap() {
                node(&sound, "a").set_pool_closed(&pool.cidr, false).unwrap();
            }
            for container in 0..14 {
                node(&sound, "b").assign(&request(container, &pools())).unwrap();
            }
            assert_eq!(assert_consistent(&sound).len(), 28, "{fault:?} at write {at_write}");
        }
    }
}

#[test]
fn a_deletion_loses_its_patience_over_nobody_in_the_way_alone() {
    let store = store();
    PRELUDES[1](&store).unwrap();
    for Pool { cidr, .. } in pools() {
        node(&store, "a").set_pool_closed(&cidr, true).unwrap();
        let closed = store.read::<Pool>(&keys::pool(&cidr)).unwrap().unwrap().revision;

        node(&store, "a").delete_closed(&cidr, closed, Patience::spent()).unwrap();
    }

    assert_eq!(store.pools().unwrap(), []);
    PRELUDES[1](&store).unwrap();
    let (cidr, outdated) = (pools()[0].cidr, crate::Revision(1));
    node(&store, "a").set_pool_closed(&cidr, true).unwrap();
    let refused = node(&store, "a").delete_closed(&cidr, outdated, Patience::spent());
    assert!(matches!(refused, Err(IpamError::Contended)), "{refused:?}");
}

#[test]
fn a_pool_in_use_is_not_closed_for_a_deletion_that_fails() {
    let store = store();
    ASSIGN(&store).unwrap();
    let cidr = pools()[0].cidr;
    let revision = || store.read::<Pool>(&keys::pool(&cidr)).unwrap().unwrap().revision;
    let before = revision();

    let refused = node(&store, "a").delete_pool(&cidr);

    assert!(matches!(refused, Err(IpamError::PoolInUse { used: 1, .. })), "{refused:?}");
    assert_eq!(revision(), before);
}

#[test]
fn a_deletion_that_fails_opens_the_pool_again_and_says_why_it_failed() {
    for at_write in 1.. {
        let memory = Memory::new();
        let sound = Store::new(memory.clone());
        PRELUDES[1](&sound).unwrap();
        let faulty = Arc::new(Faulty::new(memory, Fault::FailOnce, at_write));

        let outcome = DELETE(&Store::new(faulty.clone()));

        if !faulty.has_struck() {
            break;
        }
        assert!(matches!(outcome, Err(IpamError::Store(_))), "{outcome:?}");
        assert!(sound.pools().unwrap().iter().all(Pool::is_open), "at write {at_write}");
    }
    // Nor can it be opened again.
    let memory = Memory::new();
    let sound = Store::new(memory.clone());
    ASSIGN(&sound).unwrap();
    let cidr = pools()[0].cidr;
    node(&sound, "a").release(&attachment("x")).unwrap();
    let others = sound.clone();
    let assigned = move || {
        node(&others, "b").set_pool_closed(&cidr, false).unwrap();
        ASSIGN(&others).unwrap();
        node(&others, "b").set_pool_closed(&cidr, true).unwrap();
    };
    // The pool twice, claims, blocks; and before the look at the pools around, it is in use.
    let hooked = Hooked::new(memory, 5, assigned);
    let store = Store::new(Faulty::new(hooked, Fault::CrashBefore, 1));
    let outcome = node(&store, "a").delete_pool(&cidr);
    assert!(matches!(outcome, Err(IpamError::PoolInUse { .. })), "{outcome:?}");
}

#[test]
fn a_claim_that_is_refused_leaves_no_hint() {
    let mut refused = 0;
    for at_call in 0.. {
        let store = store();
        PRELUDES[0](&store).unwrap();
        let others = store.clone();
        let hook = move || assert_expected(DELETE(&others), at_call);
        let hooked = Arc::new(Hooked::new(store.shared_backend(), at_call, hook));

        let outcome = ASSIGN(&Store::new(hooked.clone()));

        if !hooked.has_run() {
            break;
        }
        if outcome.is_err() && store.pools().unwrap().is_empty() {
            let hints = store.backend().list("open/", None).unwrap();
            assert_eq!(hints.len(), 0, "at call {at_call}");
            refused += 1;
        }
    }
    assert!(refused > 3, "{refused}");
}

#[test]
fn an_assignment_takes_of_another_pool_where_one_is_deleted_and_else_names_it() {
    let store = store();
    let ipam = node(&store, "a");
    let (mut elsewhere, mut named) = (0, 0);
    for at_call in 1..20 {
        // Each time the configuration is another, and the pool's record is written.
        let first = Pool { nat_outgoing: at_call % 2 == 0, ..pools()[0].clone() };
        let both = [first.clone(), pool("10.1.0.0/28", 30)];
        for pools in [&both[..], &both[..1]] {
            ipam.assign(&request("before", &self::pools())).unwrap();
            ipam.release(&attachment("before")).unwrap();
            let (sound, cidr) = (store.clone(), first.cidr);
            let (deleted, is_deleted) = std::sync::mpsc::channel();
            let hook = move || {
                let outcome = node(&sound, "b").delete_pool(&cidr);
                deleted.send(outcome.is_ok()).unwrap();
            };
            let hooked = Arc::new(Hooked::new(store.shared_backend(), at_call, hook));

            let assigned = node(&Store::new(hooked.clone()), "a").assign(&request("x", pools));

            match assigned {
                Ok(ips) if is_deleted.try_recv() == Ok(true) => {
                    assert!(pools[1].cidr.contains(ips[0]));
                    elsewhere += 1;
                }
                Ok(ips) => assert!(pools.iter().any(|pool| pool.cidr.contains(ips[0]))),
                Err(IpamError::PoolDeleted { pool }) => {
                    assert_eq!(pool, cidr);
                    named += 1;
                }
                Err(error) => panic!("{error}"),
            }
            ipam.release(&attachment("x")).unwrap();
            assert_consistent(&store);
        }
    }
    assert!(elsewhere > 0 && named > 0, "{elsewhere} {named}");
}

#[test]
fn nodes_that_disagree_about_blocks_at_the_first_assignment_use_one_size_alone() {
    let nothing: Story = |_| Ok(());
    let other_blocks: Story = |store| {
        let other = [pool("10.0.0.0/28", 29), pool("fd00::/124", 125)];
        node(store, "b").assign(&request("y", &other)).map(drop)
    };
    let around: Story = |store| {
        let other = [pool("10.0.0.0/27", 29), pool("fd00::/123", 125)];
        node(store, "b").assign(&request("y", &other)).map(drop)
    };
    at_every_step(&memory, nothing, ASSIGN, other_blocks);
    at_every_step(&memory, nothing, ASSIGN, around);
}

#[test]
fn pools_are_deleted_under_assignments_in_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    let empty = || -> Arc<dyn Backend> {
        count.set(count.get() + 1);
        Arc::new(Sqlite::open(&directory.path().join(format!("{}.db", count.get()))).unwrap())
    };
    at_every_step(&empty, PRELUDES[1], ASSIGN, DELETE);
    at_every_step(&empty, PRELUDES[1], DELETE, ASSIGN);
}

#[test]
fn pools_are_deleted_under_assignments_in_etcd() {
    let cluster = EtcdCluster::start();
    let count = std::cell::Cell::new(0);
    let empty = || -> Arc<dyn Backend> {
        count.set(count.get() + 1);
        let prefix = format!("/test-{}/", count.get());
        Arc::new(crate::Etcd::open(EtcdConf { prefix, ..cluster.conf() }).unwrap())
    };
    at_every_step(&empty, PRELUDES[1], ASSIGN, DELETE);
    at_every_step(&empty, PRELUDES[1], DELETE, ASSIGN);
}

/// 14 addresses of IPv4 and 15 of IPv6, in four blocks each.
fn pools() -> [Pool; 2] {
    [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)]
}

/// Leaves the node with blocks that hold nothing.
fn use_and_empty(store: &Store, name: &str) -> Result<(), IpamError> {
    let of = |number| format!("{name}-{number}");
    for number in 0..5 {
        node(store, name).cool_down(Duration::ZERO).assign(&request(of(number), &pools()))?;
    }
    for number in 0..5 {
        node(store, name).cool_down(Duration::ZERO).release(&attachment(of(number)))?;
    }
    Ok(())
}

fn give_up(store: &Store, name: &str) -> Result<(), IpamError> {
    node(store, name).cool_down(Duration::ZERO).tend_blocks().map(drop)
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(Memory::new())
}

/// Runs the story with `meanwhile` before its first step, its second, and so on to its last.
fn at_every_step(
    empty: &dyn Fn() -> Arc<dyn Backend>,
    prelude: Story,
    story: Story,
    meanwhile: Story,
) {
    for step in 0.. {
        let backend = empty();
        let sound = Store::new(Arc::clone(&backend));
        prelude(&sound).unwrap();
        let before = node(&sound, "a").assigned(&attachment("x")).unwrap().len();
        let others = sound.clone();
        let hook = move || assert_expected(meanwhile(&others), step);
        let hooked = Arc::new(Hooked::new(backend, step, hook));

        assert_expected(story(&Store::new(hooked.clone())), step);

        assert_consistent(&sound);
        let held = node(&sound, "a").assigned(&attachment("x")).unwrap().len();
        assert!([0, before, 2].contains(&held), "x holds {held} at step {step}");
        if !hooked.has_run() {
            return;
        }
        // Whatever became of it, everything can be used.
        for attachment in ["a", "b"].map(|name| node(&sound, name).attachments("net").unwrap()) {
            for attachment in attachment {
                node(&sound, "a").release(&attachment).unwrap();
            }
        }
        for pool in sound.pools().unwrap() {
            node(&sound, "a").set_pool_closed(&pool.cidr, false).unwrap();
            node(&sound, "a").delete_pool(&pool.cidr).unwrap();
        }
        assert_consistent(&sound);
        for container in 0..14 {
            node(&sound, "b").assign(&request(container, &pools())).unwrap();
        }
        assert_eq!(assert_consistent(&sound).len(), 28, "at step {step}");
    }
}

fn assert_expected(outcome: Result<(), IpamError>, step: u32) {
    match outcome {
        Ok(())
        | Err(
            IpamError::AlreadyAssigned { .. }
            | IpamError::Interrupted { .. }
            | IpamError::NoPool { .. }
            | IpamError::PoolDeleted { .. }
            | IpamError::PoolEnabled { .. }
            | IpamError::Pool(PoolError::OtherBlockSize { .. }),
        ) => {}
        Err(error) => panic!("{error} at step {step}"),
    }
}

/// Panics if anything contradicts itself, or is of no pool.
fn assert_consistent(store: &Store) -> BTreeMap<IpAddr, Attachment> {
    let pools = store.pools().unwrap();
    for family in [Family::V4, Family::V6] {
        let blocks = store.read_all::<Block>(&keys::blocks(family)).unwrap();
        let claims = store.read_all::<Affinity>(&keys::affinities(family)).unwrap();
        let blocks = blocks.into_iter().map(|block| ("block", block.cidr));
        for (kind, cidr) in blocks.chain(claims.into_iter().map(|claim| ("claim", claim.block))) {
            assert!(pools.iter().any(|pool| pool.owns(&cidr)), "{kind} {cidr} is of no pool");
        }
    }
    taken(store)
}
