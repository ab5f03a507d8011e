//! What agents follow of blocks. That it always agrees with them is looked at by [`taken`], in every test.

use super::*;

/// Four blocks of each family, two of which node a has, with an address that node b has borrowed.
fn pools() -> [Pool; 2] {
    [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)]
}

fn placements(store: &Store) -> BTreeMap<String, Placement> {
    let listed = store.read_all::<Placement>("placements/ipv4/").unwrap();
    listed.into_iter().map(|placement| (placement.cidr.to_string(), placement)).collect()
}

/// As a build leaves it that knows no placements.
fn forget(store: &Store) {
    for placement in store.backend().list(keys::PLACEMENTS, None).unwrap() {
        store.backend().delete(&placement.key, None).unwrap();
    }
}

#[test]
fn a_pod_changes_no_placement_but_where_it_is_not_on_the_blocks_node() {
    let store = store();
    let pools = [pool("10.0.0.0/29", 29)];
    node(&store, "a").assign(&request(0, &pools)).unwrap();
    let mut watch =
        store.backend().watch(keys::PLACEMENTS, store.backend().revision().unwrap()).unwrap();
    let mut changes = || {
        let mut count = 0;
        while watch.next(Duration::ZERO).unwrap().is_some() {
            count += 1;
        }
        count
    };

    for container in 1..4 {
        node(&store, "a").assign(&request(container, &pools)).unwrap();
    }
    node(&store, "a").release(&attachment(2)).unwrap();
    node(&store, "a").tend_blocks().unwrap();
    assert_eq!(changes(), 0);

    let [lent] = node(&store, "b").assign(&request("b", &pools)).unwrap()[..] else { panic!() };
    assert_eq!(changes(), 1);
    let placement = &placements(&store)["10.0.0.0/29"];
    assert_eq!(placement.node, "a");
    assert_eq!(placement.borrowed, BTreeMap::from([(lent, "b".to_owned())]));
    node(&store, "b").release(&attachment("b")).unwrap();
    assert_eq!(changes(), 1);
    assert!(placements(&store)["10.0.0.0/29"].borrowed.is_empty());
}

#[test]
fn blocks_of_a_build_that_knows_no_placements_get_them_and_what_is_left_over_goes() {
    let store = store();
    node(&store, "a").assign(&request("a", &pools())).unwrap();
    node(&store, "b").assign(&requesting("b", &pools(), &["10.0.0.14"])).unwrap();
    let before = store.backend().list(keys::PLACEMENTS, None).unwrap().len();
    assert_eq!(store.place_blocks().unwrap(), [], "there is nothing to do");
    forget(&store);
    let of_nothing = Placement {
        cidr: "10.0.1.0/30".parse().unwrap(),
        node: "a".to_owned(),
        borrowed: BTreeMap::new(),
    };
    store.put(&keys::placement(&of_nothing.cidr), &of_nothing).unwrap();
    store.backend().create("placements/ipv4/10.0.2.0-30", b"?").unwrap();
    assert_eq!(store.misplaced_blocks().unwrap().len(), before + 1, "but for the illegible one");

    assert_eq!(store.place_blocks().unwrap().len(), before + 2);

    assert_eq!(taken(&store).len(), 4);
    assert_eq!(store.place_blocks().unwrap(), []);
}

#[test]
fn a_node_puts_the_placements_of_its_own_blocks_right_and_gives_them_up_after() {
    let store = store();
    let pools = [pool("10.0.0.0/29", 30)];
    let held = node(&store, "a").assign(&request("a", &pools)).unwrap()[0];
    let other = node(&store, "b").assign(&request("b", &pools)).unwrap()[0];
    let [own, elsewhere] = [held, other].map(|ip| pools[0].block_of(ip));
    for (cidr, value) in [(own, "{}"), (elsewhere, "")] {
        let placement = store.backend().get(&keys::placement(&cidr)).unwrap().unwrap();
        store.backend().update(&placement.key, value.as_bytes(), placement.revision).unwrap();
    }

    let tended = node(&store, "a").tend_blocks().unwrap();

    assert_eq!((tended.placed, tended.used), (vec![own], BTreeMap::from([(own, 1)])));
    assert_eq!(store.misplaced_blocks().unwrap(), [elsewhere], "that is another's");
    assert!(store.place_block(&elsewhere).unwrap() && !store.place_block(&elsewhere).unwrap());
    assert_eq!(taken(&store).len(), 2);
    node(&store, "a").release(&attachment("a")).unwrap();
    forget(&store);
    let a = node(&store, "a").cool_down(Duration::ZERO);
    assert_eq!(a.tend_blocks().unwrap().placed, [own]);
    assert_eq!(a.tend_blocks().unwrap().released, [own], "all blocks are claimed");
    assert_eq!(store.place_blocks().unwrap(), [elsewhere]);
    taken(&store);
}

#[test]
fn a_block_that_does_not_decode_keeps_no_other_from_its_placement() {
    let store = store();
    node(&store, "a").assign(&request(1, &pools())).unwrap();
    forget(&store);
    let block = store.backend().list(keys::BLOCKS, None).unwrap().remove(0);
    store.backend().update(&block.key, b"{}", block.revision).unwrap();

    assert_eq!(store.place_blocks().unwrap().len(), 1);
    assert_eq!(store.misplaced_blocks().unwrap(), []);
    assert_eq!(store.backend().get(&block.key).unwrap().unwrap().value, b"{}");
}

#[test]
fn a_pool_takes_the_placements_of_its_blocks_with_it() {
    let store = store();
    node(&store, "a").assign(&request(1, &pools())).unwrap();
    node(&store, "a").release(&attachment(1)).unwrap();

    for pool in pools() {
        node(&store, "a").delete_pool(&pool.cidr).unwrap();
    }

    assert_eq!(store.backend().list(keys::PLACEMENTS, None).unwrap(), []);
}

#[test]
fn a_placement_that_nobody_would_write_is_an_error_that_names_its_key() {
    let store = store();
    let cidr: IpNetwork = "10.0.0.0/30".parse().unwrap();
    for (value, why) in [
        (r#"{"cidr":"10.9.0.0/30","node":"a"}"#, "of another block"),
        (r#"{"cidr":"10.0.0.0/30","node":"a","borrowed":{"10.9.0.1":"b"}}"#, "from elsewhere"),
    ] {
        store.backend().create(&keys::placement(&cidr), value.as_bytes()).unwrap();

        let (_, changes) = store.survey(crate::Topic::Blocks).unwrap();

        assert!(matches!(changes[0].fact, Some(Err(_))), "{why}: {changes:?}");
        assert_eq!(changes[0].key, keys::placement(&cidr));
        store.backend().delete(&keys::placement(&cidr), None).unwrap();
    }
}
