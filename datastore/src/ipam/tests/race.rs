//! Many at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;
use crate::testing::Hooked;

#[test]
fn assigns_and_releases_of_one_attachment_racing_leave_all_or_nothing() {
    for _ in 0..20 {
        let store = store();
        let pools = [pool("10.0.0.0/28", 30), pool("fd00::/124", 126)];
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..30 {
                        match node(&store, "a").assign(&request("x", &pools)) {
                            Ok(ips) => assert_eq!(ips.len(), 2),
                            Err(
                                IpamError::AlreadyAssigned { .. } | IpamError::Interrupted { .. },
                            ) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
                scope.spawn(|| {
                    for _ in 0..30 {
                        node(&store, "a").release(&attachment("x")).unwrap();
                    }
                });
            }
        });

        let out = taken(&store).len();
        assert!([0, 2].contains(&out), "{out}");
        node(&store, "a").release(&attachment("x")).unwrap();
        assert_nothing_held(&store);
    }
}

#[test]
fn a_release_between_any_two_steps_of_an_assign_leaves_all_or_nothing() {
    at_every_step(assign_x, |store| drop(node(store, "a").release(&attachment("x")).unwrap()));
}

#[test]
fn a_release_and_a_new_assign_between_any_two_steps_of_an_assign_keep_the_new_one() {
    let again = |store: &Store| {
        node(store, "a").release(&attachment("x")).unwrap();
        assign_x(store).unwrap();
    };
    at_every_step_leaving(&[2], assign_x, again);
}

#[test]
fn another_assign_between_any_two_steps_of_an_assign_gets_other_addresses() {
    let other = |store: &Store| {
        let ips = node(store, "a").assign(&request("y", &small_pools())).unwrap();
        assert_eq!(ips.len(), 2);
    };
    at_every_step(assign_x, other);
    at_every_step(assign_x, |store| drop(assign_x(store)));
    let borrower = |store: &Store| {
        node(store, "b").assign(&request("y", &small_pools())).unwrap();
    };
    at_every_step(assign_x, borrower);
}

#[test]
fn two_assigns_of_a_node_without_blocks_share_the_one_that_it_claims() {
    let story: Story = |store| {
        let ips = assign_x(store)?;
        let of_node_a = |family| store.read_all::<Affinity>(&keys::affinities(family)).unwrap();
        assert_eq!(of_node_a(Family::V4).len(), 1, "blocks of IPv4");
        assert_eq!(of_node_a(Family::V6).len(), 1, "blocks of IPv6");
        Ok(ips)
    };
    at_every_step_leaving(&[2], story, |store| {
        node(store, "a").assign(&request("y", &small_pools())).unwrap();
    });
}

#[test]
fn anything_between_any_two_steps_of_a_release_leaves_all_or_nothing() {
    let story: Story = |store| {
        assign_x(store)?;
        node(store, "a").release(&attachment("x"))
    };
    at_every_step(story, |store| drop(node(store, "a").release(&attachment("x")).unwrap()));
    at_every_step(story, |store| drop(assign_x(store)));
    let reboot = |store: &Store| {
        let after = Ipam::new(store, "a", "boot-2");
        after.reclaim_earlier_boots(&|_| false).unwrap();
        drop(after.assign(&request("x", &small_pools())));
    };
    at_every_step(story, reboot);
    at_every_step(assign_x, reboot);
}

#[test]
fn whatever_others_do_between_any_two_steps_of_placing_blocks_they_agree_with_their_placements() {
    let without_placements = |store: &Store| {
        for number in 0..5 {
            node(store, "a").assign(&request(format!("a-{number}"), &small_pools())).unwrap();
        }
        for placement in store.backend().list(keys::PLACEMENTS, None).unwrap() {
            store.backend().delete(&placement.key, None).unwrap();
        }
    };
    let place: Story = |store| store.place_blocks().map(|_| Vec::new());
    let borrow: Meanwhile =
        |store| drop(node(store, "b").assign(&request("y", &small_pools())).unwrap());
    let release: Meanwhile = |store| drop(node(store, "a").release(&attachment("a-1")).unwrap());
    let remove: Meanwhile = |store| drop(remove_a(store).unwrap());
    let delete: Meanwhile = |store| {
        for number in 0..5 {
            node(store, "a").release(&attachment(format!("a-{number}"))).unwrap();
        }
        for pool in small_pools() {
            node(store, "a").delete_pool(&pool.cidr).unwrap();
        }
    };
    for meanwhile in [borrow, release, remove, delete] {
        at_every_step_after(without_placements, &[0], place, meanwhile);
    }
}

#[test]
fn giving_up_blocks_between_any_two_steps_of_an_assign_takes_nothing_from_it() {
    let give_up = |store: &Store| give_up_blocks(store, "a");
    at_every_step_leaving(&[2], assign_x, give_up);
    at_every_step_leaving(
        &[2],
        |store| {
            use_and_empty(store, "a");
            assign_x(store)
        },
        give_up,
    );
    // The same for one who borrows.
    let borrow: Story = |store| {
        use_and_empty(store, "a");
        node(store, "b").assign(&request("x", &small_pools()))
    };
    at_every_step_leaving(&[2], borrow, give_up);
    // And what was given up is another's at once.
    at_every_step_leaving(&[2], assign_x, |store| {
        give_up_blocks(store, "a");
        node(store, "b").assign(&request("y", &small_pools())).unwrap();
    });
    let used_and_given_up = |store: &Store| {
        use_and_empty(store, "b");
        give_up_blocks(store, "b");
        use_and_empty(store, "a");
        give_up_blocks(store, "a");
    };
    at_every_step_leaving(&[2], assign_x, used_and_given_up);
    at_every_step_leaving(&[2], borrow, used_and_given_up);
}

#[test]
fn anything_between_any_two_steps_of_giving_up_blocks_keeps_what_it_took() {
    let story: Story = |store| {
        use_and_empty(store, "a");
        give_up_blocks(store, "a");
        Ok(Vec::new())
    };
    at_every_step_leaving(&[0, 2], story, |store| drop(assign_x(store)));
    at_every_step(story, |store| {
        node(store, "b").assign(&request("y", &small_pools())).unwrap();
    });
    at_every_step(story, |store| {
        give_up_blocks(store, "a");
        node(store, "b").assign(&request("y", &small_pools())).unwrap();
        give_up_blocks(store, "b");
    });
    at_every_step(story, |store| {
        give_up_blocks(store, "a");
        use_and_empty(store, "b");
        give_up_blocks(store, "b");
        assign_x(store).unwrap();
    });
}

#[test]
fn a_block_that_is_taken_again_while_it_is_given_up_keeps_its_claim() {
    // Of pools of one block, none is kept to spare.
    fn pools() -> Vec<Pool> {
        vec![pool("10.0.0.0/30", 30), pool("fd00::/126", 126)]
    }
    let story: Story = |store| {
        node(store, "a").assign(&request("z", &pools())).unwrap();
        node(store, "a").release(&attachment("z")).unwrap();
        give_up_blocks(store, "a");
        Ok(Vec::new())
    };
    at_every_step(story, |store| {
        node(store, "a").assign(&request("x", &pools())).unwrap();
    });
    at_every_step(story, |store| {
        node(store, "b").assign(&request("x", &pools())).unwrap();
    });
    at_every_step(story, |store| {
        give_up_blocks(store, "a");
        node(store, "b").assign(&request("y", &pools())).unwrap();
    });
}

#[test]
fn the_removal_of_a_node_between_any_two_steps_of_others_takes_nothing_of_theirs() {
    let remove = |store: &Store| drop(remove_a(store));
    let borrow: Story = |store| node(store, "b").assign(&request("x", &small_pools()));
    let prelude = |store: &Store| use_and_empty(store, "a");
    at_every_step_after(prelude, &[2], borrow, remove);
    // And what it had is another's at once.
    at_every_step_after(prelude, &[2], borrow, |store| {
        drop(remove_a(store));
        node(store, "c").assign(&request("y", &small_pools())).unwrap();
    });
    let release: Story = |store| node(store, "b").release(&attachment("x"));
    at_every_step_after(fill_and_borrow, &[0], release, remove);
}

#[test]
fn whatever_others_do_between_any_two_steps_of_the_removal_of_a_node_stays() {
    let others: [(&[usize], Meanwhile); 5] = [
        (&[2], |store| drop(node(store, "b").assign(&request("y", &small_pools())))),
        (&[0, 2], |store| drop(node(store, "b").release(&attachment("x")).unwrap())),
        (&[0, 2], |store| {
            node(store, "b").release(&attachment("x")).unwrap();
            drop(node(store, "c").assign(&request("y", &small_pools())));
        }),
        (&[2], |store| drop(remove_a(store))),
        (&[2], |store| give_up_blocks(store, "a")),
    ];
    for (x_holds, meanwhile) in others {
        at_every_step_after(fill_and_borrow, x_holds, remove_a, meanwhile);
    }
}

#[test]
fn a_node_that_comes_back_while_it_is_removed_keeps_what_it_takes() {
    at_every_step_after(fill_and_borrow, &[2], remove_a, |store| {
        let back = Ipam::new(store, "a", "boot-2");
        back.reclaim_earlier_boots(&|_| true).unwrap();
        drop(back.assign(&request("y", &small_pools())));
    });
}

/// Whatever is not as it was when it began is no mistake of it.
fn remove_a(store: &Store) -> Result<Vec<IpAddr>, IpamError> {
    match crate::remove_node(store, "a", crate::Caution::Forced) {
        Ok(_) | Err(crate::RemoveNodeError::Back { .. }) => Ok(Vec::new()),
        Err(crate::RemoveNodeError::Addresses { source, .. }) => Err(*source),
        Err(error) => panic!("{error}"),
    }
}

/// Leaves node b with addresses x in blocks of node a, which has all others.
fn fill_and_borrow(store: &Store) {
    store.update_node("a", |node| node.boot_id = BOOT.to_owned()).unwrap();
    let container = |number| format!("a-{number}");
    for number in 0..6 {
        node(store, "a").assign(&request(container(number), &small_pools())).unwrap();
    }
    node(store, "a").release(&attachment(container(2))).unwrap();
    node(store, "b").assign(&request("x", &small_pools())).unwrap();
}

fn give_up_blocks(store: &Store, name: &str) {
    node(store, name).cool_down(Duration::ZERO).tend_blocks().unwrap();
}

/// Leaves the node with blocks that hold nothing.
fn use_and_empty(store: &Store, name: &str) {
    let ipam = node(store, name).cool_down(Duration::ZERO);
    let of = |number| format!("{name}-{number}");
    for number in 0..5 {
        drop(ipam.assign(&request(of(number), &small_pools())));
    }
    for number in 0..5 {
        ipam.release(&attachment(of(number))).unwrap();
    }
}

type Story = fn(&Store) -> Result<Vec<IpAddr>, IpamError>;
type Meanwhile = fn(&Store);

fn assign_x(store: &Store) -> Result<Vec<IpAddr>, IpamError> {
    node(store, "a").assign(&request("x", &small_pools()))
}

fn small_pools() -> Vec<Pool> {
    vec![pool("10.0.0.0/29", 30), pool("fd00::/125", 126)]
}

/// Runs the story with `meanwhile` before its first step, its second, and so on to its last.
fn at_every_step(story: Story, meanwhile: Meanwhile) {
    at_every_step_leaving(&[0, 2], story, meanwhile);
}

/// The same, where attachment x must hold one of these numbers of addresses in the end.
fn at_every_step_leaving(x_holds: &[usize], story: Story, meanwhile: Meanwhile) {
    at_every_step_after(|_| {}, x_holds, story, meanwhile);
}

/// The same, after a prelude that nothing interrupts.
fn at_every_step_after(prelude: fn(&Store), x_holds: &[usize], story: Story, meanwhile: Meanwhile) {
    for step in 0.. {
        let memory = Memory::new();
        let sound = Store::new(memory.clone());
        prelude(&sound);
        let meanwhile_store = sound.clone();
        let hook = move || meanwhile(&meanwhile_store);
        let hooked = std::sync::Arc::new(Hooked::new(memory, step, hook));

        let outcome = story(&Store::new(hooked.clone()));

        if let Err(error) = outcome {
            let expected =
                matches!(error, IpamError::AlreadyAssigned { .. } | IpamError::Interrupted { .. });
            assert!(expected, "{error} with an interruption at step {step}");
        }
        let out = taken(&sound);
        for (name, allowed) in [("x", x_holds), ("y", &[0, 2])] {
            let held = out.values().filter(|holder| **holder == attachment(name)).count();
            assert!(allowed.contains(&held), "{name} holds {held} at step {step}");
            assert_eq!(node(&sound, "a").assigned(&attachment(name)).unwrap().len(), held);
            node(&sound, "a").release(&attachment(name)).unwrap();
        }
        for of_prelude in (0..6).map(|number| attachment(format!("a-{number}"))) {
            node(&sound, "a").release(&of_prelude).unwrap();
        }
        assert_nothing_held(&sound);
        if !hooked.has_run() {
            assert!(step > 5, "the story has more steps than that");
            return;
        }
    }
}

#[test]
fn nodes_that_fill_a_pool_together_give_out_every_address_once() {
    for _ in 0..10 {
        let store = store();
        let pools = [pool("10.0.0.0/25", 28)];
        let (barrier, count) = (Barrier::new(4), AtomicU32::new(0));
        thread::scope(|scope| {
            for name in ["a", "a", "b", "c"] {
                let (store, pools, barrier, count) = (&store, &pools, &barrier, &count);
                scope.spawn(move || {
                    barrier.wait();
                    loop {
                        let container = count.fetch_add(1, Ordering::Relaxed);
                        match node(store, name).assign(&request(container, pools)) {
                            Ok(_) => {}
                            Err(IpamError::Exhausted { .. }) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        assert_eq!(taken(&store).len(), 126);
    }
}

#[test]
fn churn_by_many_neither_leaks_nor_doubles() {
    let store = store();
    let pools = [pool("10.0.0.0/26", 29), pool("fd00::/120", 125)];
    thread::scope(|scope| {
        for worker in 0..6 {
            let (store, pools) = (&store, &pools);
            scope.spawn(move || {
                let ipam = node(store, ["a", "b"][worker % 2]).cool_down(Duration::ZERO);
                for round in 0..60 {
                    let container = format!("{worker}-{}", round % 5);
                    let ips = ipam.assign(&request(&container, pools)).unwrap();
                    assert_eq!(ipam.assigned(&attachment(&container)).unwrap(), ips);
                    if round % 5 == 4 {
                        ipam.tend_blocks().unwrap();
                        for other in 0..5 {
                            let other = attachment(format!("{worker}-{other}"));
                            assert_eq!(ipam.release(&other).unwrap().len(), 2);
                        }
                        ipam.tend_blocks().unwrap();
                    }
                }
            });
        }
    });
    assert_nothing_held(&store);
}
