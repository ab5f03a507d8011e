//! What callers are promised.

use super::*;

#[test]
fn an_attachment_gets_one_address_of_each_family_and_gives_both_back() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("fd00:10::/64", 122), pool("10.244.0.0/26", 26)];

    let ips = ipam.assign(&request(1, &pools)).unwrap();

    assert!(ips[0].is_ipv4() && ips[1].is_ipv6() && ips.len() == 2, "{ips:?}");
    assert_eq!(ips[0], ip("10.244.0.1"));
    assert_eq!(ipam.assigned(&attachment(1)).unwrap(), ips);
    assert_eq!(ipam.attachments("net").unwrap(), [attachment(1)]);
    assert_eq!(ipam.attachments("ne").unwrap(), []);
    assert_eq!(ipam.release(&attachment(1)).unwrap(), ips);
    assert_eq!(ipam.release(&attachment(1)).unwrap(), [] as [IpAddr; 0]);
    assert_nothing_held(&store);
}

#[test]
fn a_node_is_told_of_its_own_attachments_alone() {
    let store = store();
    let pools = [pool("10.0.0.0/24", 26)];
    for (name, container) in [("a", 1), ("b", 2)] {
        node(&store, name).assign(&request(container, &pools)).unwrap();
    }

    assert_eq!(node(&store, "a").attachments("net").unwrap(), [attachment(1)]);
    assert_eq!(node(&store, "b").attachments("net").unwrap(), [attachment(2)]);
}

#[test]
fn nothing_wanted_is_nothing_done() {
    let store = store();
    let nothing = AssignRequest { ipv4: false, ..request(1, &[pool("10.0.0.0/24", 26)]) };

    assert_eq!(node(&store, "a").assign(&nothing).unwrap(), [] as [IpAddr; 0]);
    assert_nothing_held(&store);
}

#[test]
fn what_is_of_a_node_is_found_by_its_name_whatever_becomes_of_it() {
    let store = store();
    let pools = [pool("10.0.0.0/28", 30)];
    node(&store, "a").assign(&request(1, &pools)).unwrap();
    let on_a = super::crash::endpoint("2", BOOT);
    store.put_endpoint(&on_a).unwrap();
    store.put_endpoint(&Endpoint { mtu: 1400, ..on_a.clone() }).unwrap();
    let on = |node: &str| store.attachments_on(node).unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(on("a"), [attachment(1), attachment(2)]);
    assert_eq!(store.endpoints_on("a").unwrap().len(), 1);

    // The same attachment on another node, or on this one under another name.
    store.put_endpoint(&Endpoint { node: "b/c".to_owned(), ..on_a.clone() }).unwrap();
    assert_index(&store);
    assert_eq!((on("a"), on("b/c")), (vec![attachment(1)], vec![attachment(2)]));
    assert_eq!(store.endpoints_of("net", "b/c").unwrap().len(), 1);
    assert_eq!(store.endpoints_of("ne", "b/c").unwrap().len(), 0);

    let (endpoint, revision) = store.endpoint_at(&on_a.attachment).unwrap().unwrap();
    assert!(store.delete_endpoint_at(&endpoint, revision).unwrap());
    node(&store, "b").release(&attachment(1)).unwrap();
    assert_nothing_held(&store);
    assert_eq!((on("a"), on("b/c")), (vec![], vec![]));
}

#[test]
fn a_second_assign_leaves_the_first_intact() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26)];
    let first = ipam.assign(&request(1, &pools)).unwrap();

    let error = ipam.assign(&request(1, &pools)).unwrap_err();

    assert!(
        matches!(error, IpamError::AlreadyAssigned { ref addresses, .. } if *addresses == first)
    );
    assert_eq!(ipam.assigned(&attachment(1)).unwrap(), first);
}

#[test]
fn every_usable_address_is_handed_out_once_and_then_the_pools_are_named() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/28", 30), pool("10.1.0.0/29", 26)];
    let mut seen = BTreeSet::new();

    for container in 0..14 + 6 {
        assert!(seen.insert(ipam.assign(&request(container, &pools)).unwrap()[0]));
    }

    let error = ipam.assign(&request("x", &pools)).unwrap_err();
    assert_eq!(error.to_string(), "no free addresses in 10.0.0.0/28, 10.1.0.0/29");
    for end in ["10.0.0.0", "10.0.0.15", "10.1.0.0", "10.1.0.7"] {
        assert!(!seen.contains(&ip(end)), "{end}");
    }
    assert_eq!(taken(&store).len(), 20);
    assert_eq!(ipam.has_free(&pools, false).unwrap(), [false, false]);
}

#[test]
fn the_first_pool_is_used_up_before_the_second() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.1.0.0/30", 30), pool("10.0.0.0/30", 30)];

    let got: Vec<_> = (0..4).map(|c| ipam.assign(&request(c, &pools)).unwrap()[0]).collect();

    assert_eq!(texts(&got), ["10.1.0.1", "10.1.0.2", "10.0.0.1", "10.0.0.2"]);
}

#[test]
fn a_family_that_fails_takes_the_other_back() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26), pool("fd00::/127", 127)];
    ipam.assign(&request(1, &pools)).unwrap();
    ipam.assign(&request(2, &pools)).unwrap();

    let error = ipam.assign(&request(3, &pools)).unwrap_err();

    assert!(matches!(error, IpamError::Exhausted { ref pools } if pools.len() == 1), "{error}");
    assert_eq!(taken(&store).len(), 4);
    assert_eq!(ipam.attachments("net").unwrap().len(), 2);
}

#[test]
fn an_address_rests_while_there_are_others() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/28", 29)];
    let first = ipam.assign(&request(0, &pools)).unwrap();
    ipam.release(&attachment(0)).unwrap();

    let others: Vec<_> = (1..14).map(|c| ipam.assign(&request(c, &pools)).unwrap()[0]).collect();

    assert!(!others.contains(&first[0]), "{first:?} in {others:?}");
    assert_eq!(ipam.assign(&request(14, &pools)).unwrap(), first, "better warm than none");
}

#[test]
fn when_all_are_resting_the_one_released_longest_ago_is_used_first() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/28", 30)];
    let ips: Vec<_> = (0..14).map(|c| ipam.assign(&request(c, &pools)).unwrap()).collect();
    let order = [9, 3, 12, 0, 5, 1, 13];
    for container in order {
        ipam.release(&attachment(container)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }

    for container in order {
        let again = ipam.assign(&request(format!("new{container}"), &pools)).unwrap();
        assert_eq!(again, ips[container]);
    }
}

#[test]
fn rested_addresses_are_used_before_a_block_is_claimed() {
    let store = store();
    let ipam = node(&store, "a").cool_down(Duration::ZERO);
    let pools = [pool("10.0.0.0/16", 30)];
    for round in 0..50 {
        ipam.assign(&request(round, &pools)).unwrap();
        ipam.release(&attachment(round)).unwrap();
    }

    assert_eq!(store.backend().list("blocks/ipv4/", None).unwrap().len(), 1);
}

#[test]
fn nodes_keep_to_their_own_blocks_while_there_are_any() {
    let store = store();
    let pools = [pool("10.0.0.0/16", 26)];
    let names = ["a", "b", "c"];
    for container in 0..200 {
        node(&store, names[container % 3]).assign(&request(container, &pools)).unwrap();
    }

    for block in store.read_all::<Block>("blocks/ipv4/").unwrap() {
        assert!(block.taken.values().all(|allocation| allocation.node == block.node));
    }
    assert_eq!(taken(&store).len(), 200);
}

#[test]
fn a_node_without_blocks_borrows_unless_affinity_is_strict() {
    let store = store();
    let (a, b) = (node(&store, "a"), node(&store, "b"));
    let pools = [pool("10.0.0.0/29", 29)];
    a.assign(&request(1, &pools)).unwrap();

    let strict = AssignRequest { strict_affinity: true, ..request(2, &pools) };
    assert!(matches!(b.assign(&strict), Err(IpamError::Exhausted { .. })));
    assert_eq!(b.has_free(&pools, true).unwrap(), [false]);
    assert_eq!(b.has_free(&pools, false).unwrap(), [true]);
    b.assign(&request(2, &pools)).unwrap();
    let block = store.read_all::<Block>("blocks/ipv4/").unwrap().remove(0);
    let nodes: Vec<_> = block.taken.values().map(|allocation| allocation.node.as_str()).collect();
    assert_eq!((block.node.as_str(), nodes), ("a", vec!["a", "b"]));

    b.release(&attachment(2)).unwrap();
    assert_eq!(taken(&store).len(), 1);
}

#[test]
fn requested_addresses_are_given_or_refused_with_the_reason() {
    let store = store();
    let ipam = node(&store, "a");
    let disabled = Pool { disabled: true, ..pool("10.9.0.0/24", 26) };
    let pools = [pool("10.0.0.0/24", 26), disabled, pool("fd00::/64", 122)];
    let ask = |container: u32, ips: &[&str]| ipam.assign(&requesting(container, &pools, ips));

    let got = ask(1, &["10.0.0.200", "10.0.0.7", "10.0.0.7", "10.0.0.201"]).unwrap();
    assert_eq!(texts(&got[..3]), ["10.0.0.200", "10.0.0.7", "10.0.0.201"]);
    assert!(got[3].is_ipv6(), "the family without a request is chosen freely");

    let error = ask(2, &["10.0.0.8", "10.0.0.7"]).unwrap_err();
    assert_eq!(error.to_string(), "requested address 10.0.0.7 is in use by net/c1/eth0");
    let error = ask(2, &["192.168.0.1"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "requested address 192.168.0.1 is not in 10.0.0.0/24, 10.9.0.0/24, fd00::/64"
    );
    assert!(matches!(ask(2, &["10.9.0.5"]), Err(IpamError::RequestedInDisabledPool { .. })));
    assert!(matches!(ask(2, &["10.0.0.255"]), Err(IpamError::RequestedReserved { .. })));
    assert!(matches!(ask(2, &["fd00::"]), Err(IpamError::RequestedReserved { .. })));
    assert_eq!(taken(&store).len(), 4);
    assert_eq!(ipam.attachments("net").unwrap().len(), 1);

    ipam.release(&attachment(1)).unwrap();
    ask(2, &["10.0.0.7"]).expect("a resting address may be asked for");
}

#[test]
fn a_requested_address_of_another_node_is_borrowed_unless_affinity_is_strict() {
    let store = store();
    let pools = [pool("10.0.0.0/28", 28)];
    node(&store, "a").assign(&request(1, &pools)).unwrap();
    let b = node(&store, "b");

    let ask = requesting(2, &pools, &["10.0.0.9"]);
    let strict = AssignRequest { strict_affinity: true, ..ask.clone() };
    let error = b.assign(&strict).unwrap_err();
    assert!(matches!(error, IpamError::RequestedElsewhere { ref node, .. } if node == "a"));
    assert_eq!(b.assign(&ask).unwrap(), [ip("10.0.0.9")]);
}

#[test]
fn lost_and_wrong_hints_cost_nothing_but_time() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/28", 30)];
    for container in 0..14 {
        ipam.assign(&request(container, &pools)).unwrap();
    }
    let hints = store.backend().list(keys::OPEN, None).unwrap();
    assert_eq!(hints, [], "full blocks have no hints");
    for container in [2, 11] {
        ipam.release(&attachment(container)).unwrap();
    }
    for hint in store.backend().list(keys::OPEN, None).unwrap() {
        store.backend().delete(&hint.key, None).unwrap();
    }

    assert_eq!(ipam.has_free(&pools, true).unwrap(), [true]);
    ipam.assign(&request(20, &pools)).unwrap();
    ipam.assign(&request(21, &pools)).unwrap();
    assert!(matches!(ipam.assign(&request(22, &pools)), Err(IpamError::Exhausted { .. })));
}

#[test]
fn a_full_block_that_gets_a_slot_back_has_a_hint_again() {
    let gateway = Some(ip("10.0.0.1"));
    for shape in [pool("10.0.0.0/28", 28), Pool { gateway, ..pool("10.0.0.0/28", 28) }] {
        let (store, pools) = (store(), [shape]);
        let ipam = node(&store, "a");
        let count = u32::try_from(pools[0].capacity()).unwrap();
        for container in 0..count {
            ipam.assign(&request(container, &pools)).unwrap();
        }
        assert_eq!(store.backend().list(keys::OPEN, None).unwrap(), []);

        ipam.release(&attachment(0)).unwrap();

        assert_eq!(store.backend().list(keys::OPEN, None).unwrap().len(), 1);
    }
}

#[test]
fn a_record_that_does_not_decode_is_an_error_that_names_its_key() {
    let pools = [pool("10.0.0.0/24", 26)];
    for garbage in ["", "{", "null", "{\"cidr\":\"x\"}", "[]", "\u{0}"] {
        for prefix in ["blocks/", "handles/", "open/", "pools/", "affinities/"] {
            let store = store();
            let ipam = node(&store, "a");
            ipam.assign(&request(1, &pools)).unwrap();
            let record = store.backend().list(prefix, None).unwrap().remove(0);
            store.backend().update(&record.key, garbage.as_bytes(), record.revision).unwrap();

            assert_eq!(ipam.attachments("net").unwrap(), [attachment(1)], "goes by the keys");
            let other = ipam.assign(&request(2, &pools)).map(drop);
            let same = ipam.release(&attachment(1)).map(drop);
            let usage = ipam.usage(&pools).map(drop);
            let reclaimed = Ipam::new(&store, "a", "boot-2").reclaim_earlier_boots(&|_| true);

            let errors: Vec<IpamError> = [other, same, usage, reclaimed.map(drop)]
                .into_iter()
                .filter_map(Result::err)
                .collect();
            for error in &errors {
                assert!(error.to_string().contains(&record.key), "{error} for {}", record.key);
            }
            let is_read = !prefix.starts_with("affinities");
            assert!(!is_read || !errors.is_empty(), "{} was not read", record.key);
        }
    }
}

#[test]
fn an_endpoint_in_place_of_a_damaged_one_is_its_nodes_alone() {
    let store = store();
    let on_a = super::crash::endpoint("x", BOOT);
    let on_b = Endpoint { node: "b/c".to_owned(), ..on_a.clone() };
    let damage = || {
        let key = keys::endpoint(&on_a.attachment);
        let found = store.backend().get(&key).unwrap().unwrap();
        store.backend().update(&key, b"{}", found.revision).unwrap();
    };
    for (before, after) in [(&on_a, &on_b), (&on_b, &on_a), (&on_a, &on_a)] {
        store.put_endpoint(before).unwrap();
        damage();

        store.put_endpoint(after).unwrap();

        assert_index(&store);
    }
    store.put_endpoint(&on_b).unwrap();
    damage();
    assert!(store.delete_endpoint(&on_a.attachment, "a").unwrap());
    assert_index(&store);
}

#[test]
fn the_first_call_after_a_reboot_reclaims_what_is_dead() {
    let store = store();
    let pools = [pool("10.0.0.0/24", 26)];
    let before = node(&store, "a");
    assert_eq!(before.reclaim_earlier_boots(&|_| false).unwrap(), []);
    for container in 1..=3 {
        before.assign(&request(container, &pools)).unwrap();
    }
    node(&store, "b").assign(&request("b", &pools)).unwrap();
    assert_eq!(before.reclaim_earlier_boots(&|_| panic!("not looked at")).unwrap(), []);

    let after = Ipam::new(&store, "a", "boot-2");
    after.assign(&request("new", &pools)).unwrap();
    let reclaimed = after.reclaim_earlier_boots(&|netns| netns == "/run/netns/2").unwrap();

    assert_eq!(reclaimed, [attachment(1), attachment(3)]);
    let left: BTreeSet<_> = taken(&store).into_values().collect();
    assert_eq!(left, BTreeSet::from([attachment(2), attachment("b"), attachment("new")]));
    assert_eq!(after.reclaim_earlier_boots(&|_| panic!("not looked at")).unwrap(), []);
}
