//! Blocks that a node gives up.

use super::*;

/// What is claimed, by block.
fn claims(store: &Store) -> BTreeMap<String, String> {
    let claims = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| store.read_all::<Affinity>(&keys::affinities(family)).unwrap());
    claims.map(|claim| (claim.block.to_string(), claim.node)).collect()
}

/// Address management of a node whose released addresses have rested.
fn rested<'a>(store: &'a Store, name: &str) -> Ipam<'a> {
    node(store, name).cool_down(Duration::ZERO)
}

/// Assigns to these containers on node a.
fn assign(store: &Store, pools: &[Pool], containers: std::ops::Range<u32>) {
    for container in containers {
        rested(store, "a").assign(&request(container, pools)).unwrap();
    }
}

fn release(store: &Store, containers: std::ops::Range<u32>) {
    for container in containers {
        rested(store, "a").release(&attachment(container)).unwrap();
    }
}

#[test]
fn a_node_gives_up_its_empty_blocks_but_one_of_each_pool() {
    let store = store();
    let pools = [pool("10.0.0.0/26", 29), pool("fd00::/120", 125)];
    assign(&store, &pools, 0..20);
    let claimed = claims(&store).len();
    assert!(claimed >= 6, "three blocks of each family: {claimed}");
    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released, [], "all are in use");

    release(&store, 0..20);
    let released = rested(&store, "a").tend_blocks().unwrap().released;

    assert_eq!(released.len(), claimed - 2);
    assert_eq!(claims(&store).len(), 2);
    assert_eq!(store.backend().list(keys::OPEN, None).unwrap().len(), 2, "and their hints");
    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released, [], "and again nothing");
    assert_nothing_held(&store);
    assign(&store, &pools, 0..20);
    assert_eq!(taken(&store).len(), 40);
}

#[test]
fn a_block_with_a_taken_slot_or_one_that_rests_stays() {
    let store = store();
    let pools = [Pool { disabled: false, ..pool("10.0.0.0/27", 30) }];
    assign(&store, &pools, 0..10);
    release(&store, 1..10);

    assert_eq!(node(&store, "a").tend_blocks().unwrap().released, [], "they rest");
    rested(&store, "a").tend_blocks().unwrap();

    assert_eq!(claims(&store).len(), 2, "that with a slot, and one to spare");
    let held = node(&store, "a").assigned(&attachment(0)).unwrap();
    assert_eq!(taken(&store).into_keys().collect::<Vec<_>>(), held);
}

#[test]
fn another_node_gets_what_was_given_up_and_its_blocks_are_left_alone() {
    let store = store();
    let pools = [pool("10.0.0.0/28", 30)];
    let strict = |container| AssignRequest { strict_affinity: true, ..request(container, &pools) };
    assign(&store, &pools, 0..14);
    assert!(matches!(node(&store, "b").assign(&strict(100)), Err(IpamError::Exhausted { .. })));
    release(&store, 0..14);

    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released.len(), 3);
    let fill = |mut containers: std::ops::Range<u32>| {
        let full =
            containers.find(|container| node(&store, "b").assign(&strict(*container)).is_err());
        assert!(full.is_some(), "one block is not to be had");
    };
    fill(100..114);
    // All blocks are claimed, so the last is not kept to spare.
    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released.len(), 1);
    fill(114..200);

    assert_eq!(taken(&store).len(), 14);
    assert!(claims(&store).values().all(|node| node == "b"));
    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released, []);
    assert_eq!(taken(&store).len(), 14);
}

#[test]
fn a_block_that_another_node_has_borrowed_of_stays() {
    let store = store();
    let pools = [pool("10.0.0.0/30", 30)];
    assign(&store, &pools, 0..1);
    node(&store, "b").assign(&request(100, &pools)).unwrap();
    release(&store, 0..1);

    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released, []);
    assert_eq!(taken(&store).len(), 1);
}

#[test]
fn of_a_disabled_pool_nothing_is_kept() {
    let store = store();
    let pools = [pool("10.0.0.0/26", 30), pool("10.1.0.0/26", 30)];
    assign(&store, &pools, 0..1);
    release(&store, 0..1);
    let disabled = Pool { disabled: true, ..pools[0].clone() };
    store.put(&keys::pool(&disabled.cidr), &disabled).unwrap();

    assert_eq!(rested(&store, "a").tend_blocks().unwrap().released.len(), 1);
    assert_eq!(claims(&store).len(), 0);
}

#[test]
fn a_damaged_record_keeps_no_other_block_from_being_given_up() {
    let store = store();
    let pools = [pool("10.0.0.0/26", 30)];
    assign(&store, &pools, 0..12);
    release(&store, 0..12);
    let first = store.backend().list(&keys::blocks(Family::V4), None).unwrap().remove(0);
    store.backend().update(&first.key, b"{}", first.revision).unwrap();

    let released = rested(&store, "a").tend_blocks().unwrap().released;

    assert!(!released.is_empty());
}
