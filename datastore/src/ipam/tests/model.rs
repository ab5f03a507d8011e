//! Random sequences against a model that is a map.

use proptest::prelude::*;

use super::*;

const NODES: [&str; 3] = ["a", "b", "c"];
const CONTAINERS: u8 = 24;

#[derive(Clone, Debug)]
enum Step {
    Assign { node: usize, container: u8, strict: bool },
    Request { node: usize, container: u8, host: u8 },
    Release { node: usize, container: u8 },
    LoseHints,
    GiveUpBlocks { node: usize },
    Reboot { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (node, container) = (0..NODES.len(), 0..CONTAINERS);
    prop_oneof![
        8 => (node.clone(), container.clone(), any::<bool>())
            .prop_map(|(node, container, strict)| Step::Assign { node, container, strict }),
        2 => (node.clone(), container.clone(), 0..20u8)
            .prop_map(|(node, container, host)| Step::Request { node, container, host }),
        6 => (node.clone(), container)
            .prop_map(|(node, container)| Step::Release { node, container }),
        1 => Just(Step::LoseHints),
        2 => node.clone().prop_map(|node| Step::GiveUpBlocks { node }),
        1 => node.prop_map(|node| Step::Reboot { node }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_address_is_given_twice_and_none_is_lost(
        steps in prop::collection::vec(step(), 1..80),
        cool_down_ms in prop_oneof![Just(0), Just(60_000)],
    ) {
        let mut world = World::new(cool_down_ms);
        for step in steps {
            world.run(&step);
            world.check();
        }
    }
}

/// The store beside what should be in it.
struct World {
    store: Store,
    pools: Vec<Pool>,
    cool_down: Duration,
    boots: [u32; 3],
    /// Container to its node, the node's boot, and its addresses.
    held: BTreeMap<u8, (usize, u32, Vec<IpAddr>)>,
}

impl World {
    fn new(cool_down_ms: u64) -> Self {
        Self {
            store: store(),
            pools: vec![pool("10.0.0.0/28", 30), pool("fd00::/124", 126)],
            cool_down: Duration::from_millis(cool_down_ms),
            boots: [0; 3],
            held: BTreeMap::new(),
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Assign { node, container, strict } => {
                let request =
                    AssignRequest { strict_affinity: strict, ..request(container, &self.pools) };
                self.assign(node, container, &request);
            }
            Step::Request { node, container, host } => {
                let ip = format!("10.0.0.{host}");
                let request = requesting(container, &self.pools, &[&ip]);
                self.assign(node, container, &request);
            }
            Step::Release { node, container } => {
                let released = self.ipam(node).release(&attachment(container)).unwrap();
                let expected = self.held.remove(&container).map(|held| held.2);
                assert_eq!(released, expected.unwrap_or_default());
            }
            Step::LoseHints => {
                for hint in self.store.backend().list(keys::OPEN, None).unwrap() {
                    self.store.backend().delete(&hint.key, None).unwrap();
                }
            }
            Step::GiveUpBlocks { node } => drop(self.ipam(node).tend_blocks().unwrap()),
            Step::Reboot { node } => {
                self.boots[node] += 1;
                let boot = self.boots[node];
                self.ipam(node).reclaim_earlier_boots(&|_| false).unwrap();
                self.held.retain(|_, (on, of, _)| *on != node || *of == boot);
            }
        }
    }

    fn assign(&mut self, node: usize, container: u8, request: &AssignRequest) {
        let outcome = self.ipam(node).assign(request);
        let in_use: BTreeSet<IpAddr> = self.held.values().flat_map(|h| h.2.clone()).collect();
        match outcome {
            Ok(ips) => {
                assert!(!self.held.contains_key(&container));
                assert!(ips.iter().all(|ip| !in_use.contains(ip)), "{ips:?} among {in_use:?}");
                assert!(request.requested.iter().all(|ip| ips.contains(ip)));
                assert_eq!((ips.len(), ips[0].is_ipv4(), ips[1].is_ipv6()), (2, true, true));
                assert!(ips.iter().all(|ip| self.pools.iter().any(|pool| pool.hands_out(*ip))));
                self.held.insert(container, (node, self.boots[node], ips));
            }
            Err(IpamError::AlreadyAssigned { addresses, .. }) => {
                assert_eq!(addresses, self.held[&container].2);
            }
            Err(IpamError::Exhausted { pools }) => {
                let pool = self.pools.iter().find(|pool| pools.contains(&pool.cidr)).unwrap();
                let free = pool.capacity()
                    - in_use.iter().filter(|ip| pool.cidr.contains(**ip)).count() as u128;
                assert!(free == 0 || request.strict_affinity, "{free} are free in {pools:?}");
            }
            Err(IpamError::RequestedInUse { ip, .. }) => assert!(in_use.contains(&ip)),
            Err(
                IpamError::RequestedNotInPool { ip, .. } | IpamError::RequestedReserved { ip, .. },
            ) => {
                assert!(!self.pools[0].hands_out(ip));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn check(&self) {
        let model: BTreeMap<IpAddr, Attachment> = self
            .held
            .iter()
            .flat_map(|(container, held)| held.2.iter().map(move |ip| (*ip, attachment(container))))
            .collect();
        assert_eq!(taken(&self.store), model);
        for node in 0..NODES.len() {
            let handles = self.ipam(node).attachments("net").unwrap();
            assert_eq!(handles.len(), self.held.values().filter(|held| held.0 == node).count());
        }
        let usage = self.ipam(0).usage(&self.pools).unwrap();
        assert_eq!(usage.iter().map(|usage| usage.used).sum::<u128>(), model.len() as u128);
        for (usage, free) in usage.iter().zip(self.ipam(0).has_free(&self.pools, false).unwrap()) {
            assert_eq!(usage.free() > 0, free);
        }
    }

    fn ipam(&self, node: usize) -> Ipam<'_> {
        let boot = format!("boot-{}", self.boots[node]);
        Ipam::new(&self.store, NODES[node], &boot).cool_down(self.cool_down)
    }
}
