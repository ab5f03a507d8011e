//! Many at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;

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
                        for other in 0..5 {
                            let other = attachment(format!("{worker}-{other}"));
                            assert_eq!(ipam.release(&other).unwrap().len(), 2);
                        }
                    }
                }
            });
        }
    });
    assert_nothing_held(&store);
}
