mod crash;
mod economy;
mod empty;
mod foreign;
mod leave;
mod ledger;
mod model;
mod placement;
mod pool_deletion;
mod pools;
mod race;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::block::{Affinity, Block, Handle};
use super::*;
use crate::keys;
use crate::records::Endpoint;
use crate::testing::Memory;

const BOOT: &str = "boot-1";

fn store() -> Store {
    Store::new(Memory::new())
}

fn node<'a>(store: &'a Store, name: &str) -> Ipam<'a> {
    Ipam::new(store, name, BOOT)
}

fn pool(cidr: &str, block_size: u8) -> Pool {
    Pool { block_size, ..Pool::new(cidr.parse().unwrap()) }
}

fn attachment(container: impl std::fmt::Display) -> Attachment {
    Attachment::new("net", format!("c{container}"), "eth0").unwrap()
}

/// Asks for one address of every family that the pools have.
fn request(container: impl std::fmt::Display, pools: &[Pool]) -> AssignRequest {
    AssignRequest {
        attachment: attachment(&container),
        pod: None,
        netns: Some(format!("/run/netns/{container}")),
        pools: pools.to_vec(),
        ipv4: pools.iter().any(|pool| pool.cidr.is_ipv4()),
        ipv6: pools.iter().any(|pool| pool.cidr.is_ipv6()),
        requested: Vec::new(),
        strict_affinity: false,
    }
}

fn requesting(container: impl std::fmt::Display, pools: &[Pool], ips: &[&str]) -> AssignRequest {
    AssignRequest {
        requested: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..request(container, pools)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn texts(ips: &[IpAddr]) -> Vec<String> {
    ips.iter().map(ToString::to_string).collect()
}

/// Everything that is taken, by address. Panics if anything contradicts itself: a slot whose
/// attachment has no handle that names the block, a slot outside its block, a block of a node that
/// has not claimed it, a record that is not found by its node.
fn taken(store: &Store) -> BTreeMap<IpAddr, Attachment> {
    assert_index(store);
    assert_placed(store);
    let mut taken = BTreeMap::new();
    for family in [Family::V4, Family::V6] {
        for block in store.read_all::<Block>(&keys::blocks(family)).unwrap() {
            let affinity = store.read::<Affinity>(&keys::affinity(&block.cidr)).unwrap();
            if block.is_given_up() {
                assert!(block.ended_claim.is_some());
            } else {
                assert_eq!(affinity.expect("a block is claimed").record.node, block.node);
            }
            for (ip, allocation) in &block.taken {
                assert!(block.cidr.contains(*ip));
                let handle = store.read::<Handle>(&keys::handle(&allocation.attachment)).unwrap();
                let handle = handle.expect("a taken slot has a handle").record;
                assert!(handle.blocks.contains(&block.cidr), "and the handle names the block");
                assert_eq!(handle.assignment, allocation.assignment);
                assert!(taken.insert(*ip, allocation.attachment.clone()).is_none());
            }
            let queue: BTreeSet<IpAddr> = block.released.iter().map(|r| r.ip).collect();
            assert_eq!(queue.len(), block.released.len(), "an address waits once");
            assert!(queue.iter().all(|ip| !block.taken.contains_key(ip)));
        }
    }
    taken
}

/// Panics unless `on/` names each handle and endpoint, and nothing else.
fn assert_index(store: &Store) {
    let keys = |prefix: &str| store.backend().list(prefix, None).unwrap().into_iter();
    let handles = store.read_all::<Handle>(keys::HANDLES).unwrap().into_iter();
    let endpoints = store.read_all::<Endpoint>(keys::ENDPOINTS).unwrap().into_iter();
    let wanted: BTreeSet<String> = handles
        .map(|handle| keys::on(&handle.node, &keys::handle(&handle.attachment)))
        .chain(endpoints.map(|found| keys::on(&found.node, &keys::endpoint(&found.attachment))))
        .collect();
    assert_eq!(keys("on/").map(|mark| mark.key).collect::<BTreeSet<_>>(), wanted);
}

/// Panics unless each block has the placement that follows from it, and nothing else has one.
fn assert_placed(store: &Store) {
    let families = [Family::V4, Family::V6];
    let blocks = families.map(|family| store.read_all::<Block>(&keys::blocks(family)).unwrap());
    let placements =
        families.map(|family| store.read_all::<Placement>(&keys::placements(family)).unwrap());
    assert_eq!(placements.concat(), blocks.concat().iter().map(Placement::of).collect::<Vec<_>>());
    assert_eq!(store.misplaced_blocks().unwrap(), []);
}

/// Panics unless no address is out and no handle is left.
fn assert_nothing_held(store: &Store) {
    assert_eq!(taken(store), BTreeMap::new());
    assert_eq!(store.backend().list(keys::HANDLES, None).unwrap(), []);
}
