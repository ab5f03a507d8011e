//! Pools of every shape, and pools that change.

use super::*;

#[test]
fn pools_of_one_and_two_addresses_hand_out_all() {
    for (cidr, count) in
        [("10.0.0.4/32", 1), ("10.0.0.4/31", 2), ("fd00::4/128", 1), ("fd00::4/127", 2)]
    {
        let store = store();
        let ipam = node(&store, "a");
        let pools = [Pool::new(cidr.parse().unwrap())];
        for container in 0..count {
            ipam.assign(&request(container, &pools)).unwrap();
        }
        assert!(matches!(ipam.assign(&request("x", &pools)), Err(IpamError::Exhausted { .. })));
    }
}

#[test]
fn a_huge_pool_is_not_walked() {
    let store = store();
    let pools = [pool("fd00::/48", 128), pool("::/0", 122)];
    for (index, pool) in pools.into_iter().enumerate() {
        let store = if index == 0 { store.clone() } else { super::store() };
        let pools = [pool];
        for container in 0..300 {
            let name = if container % 2 == 0 { "a" } else { "b" };
            node(&store, name).assign(&request(container, &pools)).unwrap();
        }
        assert_eq!(taken(&store).len(), 300);
        assert_eq!(node(&store, "c").has_free(&pools, true).unwrap(), [true]);
    }
}

#[test]
fn pools_that_contradict_each_other_or_the_store_are_refused() {
    let store = store();
    let ipam = node(&store, "a");
    let refused = |pools: &[Pool]| match ipam.assign(&request(9, pools)) {
        Err(IpamError::Pool(error)) => error,
        other => panic!("{other:?}"),
    };

    let overlapping = [pool("10.0.0.0/16", 26), pool("10.0.1.0/24", 26)];
    assert!(matches!(refused(&overlapping), PoolError::Overlap { .. }));

    ipam.assign(&request(1, &[pool("10.0.0.0/24", 26)])).unwrap();
    for other in [pool("10.0.0.0/24", 27), pool("10.0.0.0/16", 24), pool("10.0.0.64/28", 26)] {
        let error = refused(&[other]);
        assert!(matches!(error, PoolError::OtherBlockSize { .. }), "{error}");
        assert!(error.to_string().contains("the stored pool 10.0.0.0/24 with blocks of /26"));
    }
    assert!(matches!(
        ipam.assign(&AssignRequest { ipv6: true, ..request(2, &[pool("10.0.0.0/24", 26)]) }),
        Err(IpamError::NoPool { family: "ipv6" })
    ));
}

#[test]
fn a_pool_can_grow_while_its_addresses_are_out() {
    let store = store();
    let ipam = node(&store, "a");
    let small = [pool("10.0.0.0/27", 28)];
    for container in 0..30 {
        ipam.assign(&request(container, &small)).unwrap();
    }
    assert!(matches!(ipam.assign(&request(30, &small)), Err(IpamError::Exhausted { .. })));

    let large = [pool("10.0.0.0/25", 28)];
    for container in 30..126 {
        ipam.assign(&request(container, &large)).unwrap();
    }

    assert_eq!(taken(&store).len(), 126);
    assert!(matches!(ipam.assign(&request("x", &large)), Err(IpamError::Exhausted { .. })));
}

#[test]
fn a_removed_pool_gives_no_new_addresses_and_takes_back_the_old() {
    let store = store();
    let ipam = node(&store, "a");
    ipam.assign(&request(1, &[pool("10.0.0.0/24", 26)])).unwrap();

    let other = [pool("10.1.0.0/24", 26)];
    let elsewhere = ipam.assign(&request(2, &other)).unwrap();
    assert!(other[0].cidr.contains(elsewhere[0]), "{elsewhere:?}");
    assert_eq!(ipam.release(&attachment(1)).unwrap().len(), 1);

    let cidr = "10.1.0.0/24".parse().unwrap();
    assert!(matches!(ipam.delete_pool(&cidr), Err(IpamError::PoolInUse { used: 1, .. })));
    ipam.release(&attachment(2)).unwrap();
    ipam.delete_pool(&cidr).unwrap();
    ipam.assign(&request(3, &[pool("10.1.0.0/24", 28)])).expect("another block size");
}

#[test]
fn a_disabled_pool_gives_nothing_new() {
    let store = store();
    let ipam = node(&store, "a");
    let enabled = pool("10.0.0.0/24", 26);
    ipam.assign(&request(1, std::slice::from_ref(&enabled))).unwrap();
    let disabled = [Pool { disabled: true, ..enabled }];

    assert!(matches!(ipam.assign(&request(2, &disabled)), Err(IpamError::NoPool { .. })));
    assert_eq!(ipam.has_free(&disabled, false).unwrap(), [false]);
    assert_eq!(ipam.release(&attachment(1)).unwrap().len(), 1);
}

#[test]
fn usage_counts_what_is_out() {
    let store = store();
    let pools = [pool("10.0.0.0/28", 30), pool("fd00::/120", 122)];
    for container in 0..5 {
        node(&store, "a").assign(&request(container, &pools)).unwrap();
    }
    node(&store, "b").release(&attachment(0)).unwrap();

    let usage = node(&store, "a").usage(&pools).unwrap();

    let numbers: Vec<_> = usage.iter().map(|u| (u.capacity, u.used, u.free())).collect();
    assert_eq!(numbers, [(14, 4, 10), (255, 4, 251)]);
}

#[test]
fn a_closed_pool_gives_nothing_new_whatever_configurations_say() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26)];
    ipam.assign(&request(1, &pools)).unwrap();

    assert!(ipam.set_pool_closed(&pools[0].cidr, true).unwrap());

    let changed = [Pool { nat_outgoing: true, ..pools[0].clone() }];
    for pools in [&pools, &changed] {
        assert!(matches!(ipam.assign(&request(2, pools)), Err(IpamError::NoPool { .. })));
        assert!(matches!(
            ipam.assign(&requesting(2, pools, &["10.0.0.9"])),
            Err(IpamError::RequestedInDisabledPool { .. })
        ));
        assert_eq!(ipam.has_free(pools, false).unwrap(), [false]);
    }
    assert_eq!(store.pools().unwrap(), [Pool { closed: true, ..changed[0].clone() }]);
    let open = pool("10.1.0.0/24", 26);
    let both = [pools[0].clone(), open.clone()];
    assert!(open.cidr.contains(ipam.assign(&request(3, &both)).unwrap()[0]));
    assert!(!ipam.set_pool_closed(&pools[0].cidr, true).unwrap(), "it is");
    assert!(ipam.set_pool_closed(&pools[0].cidr, false).unwrap());
    ipam.assign(&request(4, &pools)).unwrap();
}

#[test]
fn a_pool_that_is_written_down_first_decides_how_large_blocks_are() {
    let store = store();
    let ipam = node(&store, "a");
    let created = Pool { closed: true, ..pool("10.0.0.0/24", 28) };
    ipam.create_pool(&created).unwrap();

    for overlapping in ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/16"] {
        let refused = ipam.create_pool(&pool(overlapping, 28));
        assert!(matches!(refused, Err(IpamError::Pool(PoolError::Overlap { .. }))), "{refused:?}");
    }
    let refused = ipam.assign(&request(1, &[pool("10.0.0.0/24", 26)]));
    assert!(matches!(refused, Err(IpamError::Pool(PoolError::OtherBlockSize { .. }))));
    let refused = ipam.assign(&request(1, &[pool("10.0.0.0/24", 28)]));
    assert!(matches!(refused, Err(IpamError::NoPool { .. })), "{refused:?}");

    ipam.set_pool_closed(&created.cidr, false).unwrap();
    ipam.assign(&request(1, &[pool("10.0.0.0/24", 28)])).unwrap();
}

#[test]
fn a_pool_that_cannot_be_deleted_stays_as_it_was() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26)];
    let cidr = pools[0].cidr;
    assert!(matches!(ipam.delete_pool(&cidr), Err(IpamError::UnknownPool { .. })));
    ipam.assign(&request(1, &pools)).unwrap();

    assert!(matches!(ipam.delete_pool(&cidr), Err(IpamError::PoolInUse { used: 1, .. })));
    assert!(store.pools().unwrap()[0].is_open());
    ipam.set_pool_closed(&cidr, true).unwrap();
    assert!(ipam.delete_pool(&cidr).is_err());
    assert!(store.pools().unwrap()[0].closed);

    ipam.release(&attachment(1)).unwrap();
    ipam.delete_pool(&cidr).unwrap();
    assert_eq!(store.pools().unwrap(), []);
    ipam.assign(&request(1, &[pool("10.0.0.0/24", 28)])).expect("another block size");
}

#[test]
fn a_pool_within_a_closed_one_is_closed_too_but_its_record_is_its_own() {
    let store = store();
    let ipam = node(&store, "a");
    let outer = Pool { closed: true, ..pool("10.0.0.0/16", 26) };
    ipam.create_pool(&outer).unwrap();
    let inner = [pool("10.0.1.0/24", 26)];

    let refused = ipam.assign(&request(1, &inner));

    assert!(matches!(refused, Err(IpamError::NoPool { .. })), "{refused:?}");
    assert_eq!(ipam.has_free(&inner, false).unwrap(), [false]);
    ipam.set_pool_closed(&outer.cidr, false).unwrap();
    ipam.assign(&request(1, &inner)).unwrap();
}

#[test]
fn a_block_of_a_node_without_a_claim_is_claimed_for_it_and_passed_by() {
    let store = store();
    let pools = [pool("10.0.0.0/30", 30)];
    let [held] = node(&store, "a").assign(&request(1, &pools)).unwrap()[..] else { panic!() };
    let block = pools[0].block_of(held);
    store.backend().delete(&keys::affinity(&block), None).unwrap();

    node(&store, "b").assign(&request(2, &pools)).unwrap();

    let claim = store.read::<Affinity>(&keys::affinity(&block)).unwrap().unwrap();
    assert_eq!(claim.record.node, "a");
    assert_eq!(taken(&store).len(), 2);
}

#[test]
fn a_pool_keeps_its_first_name_and_no_two_have_the_same() {
    let store = store();
    let ipam = node(&store, "a");
    let named = |cidr, name: &str| Pool { name: name.to_owned(), ..pool(cidr, 26) };
    let (nameless, blue) = (pool("10.0.0.0/24", 26), named("10.0.0.0/24", "blue"));
    let revision = || store.read::<Pool>(&keys::pool(&blue.cidr)).unwrap().unwrap().revision;
    ipam.assign(&request(0, std::slice::from_ref(&nameless))).unwrap();
    ipam.assign(&request(1, std::slice::from_ref(&blue))).unwrap();
    assert_eq!(store.pools().unwrap(), std::slice::from_ref(&blue), "the first name");
    let before = revision();

    ipam.assign(&request(2, &[named("10.0.0.0/24", "green")])).unwrap();
    ipam.assign(&request(3, &[nameless])).unwrap();
    for container in 4..6 {
        ipam.assign(&request(container, &[named("10.1.0.0/24", "blue")])).unwrap();
    }

    assert_eq!(revision(), before);
    assert_eq!(store.pools().unwrap(), [blue, pool("10.1.0.0/24", 26)]);
}
