//! How often the store is asked: each time is a round trip where it is on another machine.

use std::sync::Arc;

use super::*;
use crate::testing::Counting;

#[test]
fn an_assignment_and_a_release_of_two_families_take_eight_and_six_calls() {
    let backend = Arc::new(Counting::new(Memory::new()));
    let store = Store::new(Arc::clone(&backend));
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26), pool("fd00::/120", 122)];
    // The blocks are claimed, and the pools known.
    ipam.assign(&request(1, &pools)).unwrap();
    backend.take();

    ipam.assign(&request(2, &pools)).unwrap();
    let assign = backend.take();
    ipam.release(&attachment(2)).unwrap();
    let release = backend.take();

    assert_eq!(assign.len(), 8, "{assign:#?}");
    assert_eq!(assign.iter().filter(|call| is_write(call)).count(), 3, "{assign:#?}");
    assert_eq!(release.len(), 6, "{release:#?}");
    assert_eq!(release.iter().filter(|call| is_write(call)).count(), 3, "{release:#?}");
}

#[test]
fn a_look_for_earlier_boots_is_one_call_but_for_the_first_of_a_boot() {
    let backend = Arc::new(Counting::new(Memory::new()));
    let store = Store::new(Arc::clone(&backend));
    let ipam = node(&store, "a");
    ipam.reclaim_earlier_boots(&|_| true).unwrap();
    backend.take();

    ipam.reclaim_earlier_boots(&|_| true).unwrap();

    assert_eq!(backend.take(), ["get nodes/a"]);
}

fn is_write(call: &str) -> bool {
    ["create", "update", "delete"].iter().any(|write| call.starts_with(write))
}
