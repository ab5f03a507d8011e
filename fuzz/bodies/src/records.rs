//! The datastore's records: whatever is under whichever key, every operation ends, a record that
//! cannot be used is an error that names its key and stays as it is, and no address is given that
//! somebody has.
//!
//! An input is lines of a key, a space and a value: the content of a datastore.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use margay::error::chain;
use margay_agent::remote::RemoteTable;
use margay_agent::topology::{News, Topology};
use margay_datastore::testing::Memory;
use margay_datastore::{
    AssignRequest, Attachment, Backend, Caution, Change, Ipam, IpamError, Pool, RemoveNodeError,
    Store, StoreError, Topic, remove_node,
};
use serde_json::Value;

use crate::assert_one_line;

const NETWORK: &str = "net";
const NODE: &str = "node";
const BOOT: &str = "second-boot";

/// Works on a datastore with the input's content.
///
/// # Panics
/// When a promise is broken.
pub fn check(input: &[u8]) {
    let content = content(input);
    let attachment = Attachment::new(NETWORK, "c", "eth0").expect("valid names");
    let scene = Scene { content, attachment };
    scene.read();
    scene.assign_and_release(Vec::new());
    scene.assign_and_release(["10.244.0.70", "fd00::45"].map(|ip| ip.parse().expect("ip")).into());
    scene.release();
    scene.reclaim();
    scene.place();
    scene.remove_pools();
    scene.remove_node();
    scene.find_ways();
}

/// Keys of printable text, each with its value; a later line of the same key counts.
fn content(input: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b' ');
        let key = parts.next().filter(|key| key.iter().all(u8::is_ascii_graphic));
        let (Some(key), Some(value)) = (key, parts.next()) else { continue };
        if let Ok(key) = std::str::from_utf8(key) {
            content.insert(key.to_owned(), value.to_owned());
        }
    }
    content
}

struct Scene {
    content: BTreeMap<String, Vec<u8>>,
    attachment: Attachment,
}

impl Scene {
    fn store(&self) -> Store {
        let memory = Memory::new();
        for (key, value) in &self.content {
            memory.create(key, value).expect("a new key");
        }
        Store::new(memory)
    }

    fn read(&self) {
        let store = self.store();
        let ipam = ipam(&store);
        if let Some(endpoint) = self.accept(&store, store.endpoint(&self.attachment)).flatten() {
            assert_eq!(endpoint.attachment, self.attachment, "somebody else's endpoint");
        }
        for endpoint in self.accept(&store, store.endpoints(NETWORK)).unwrap_or_default() {
            assert_eq!(endpoint.attachment.network(), NETWORK);
        }
        self.accept(&store, store.node(NODE));
        self.accept(&store, store.nodes());
        self.accept(&store, store.heartbeats());
        self.accept(&store, store.every_endpoint());
        self.accept(&store, store.attachments_on(NODE));
        for endpoint in self.accept(&store, store.endpoints_on(NODE)).unwrap_or_default() {
            assert_eq!(endpoint.node, NODE, "another node's endpoint");
        }
        self.accept(&store, store.pools());
        self.accept_ipam(&store, ipam.assigned(&self.attachment));
        let attachments = self.accept_ipam(&store, ipam.attachments(NETWORK)).unwrap_or_default();
        assert!(attachments.iter().all(|attachment| attachment.network() == NETWORK));
        self.accept_ipam(&store, ipam.usage(&pools()));
        for strict_affinity in [false, true] {
            self.accept_ipam(&store, ipam.has_free(&pools(), strict_affinity));
        }
        self.check_unchanged(&store);
    }

    fn assign_and_release(&self, requested: Vec<IpAddr>) {
        let store = self.store();
        let ipam = ipam(&store);
        let taken = taken(&store);
        let request = AssignRequest {
            attachment: self.attachment.clone(),
            pod: None,
            netns: Some("/run/netns/c".to_owned()),
            pools: pools(),
            ipv4: true,
            ipv6: true,
            requested,
            strict_affinity: false,
        };
        let assigned = self.accept_ipam(&store, ipam.assign(&request));
        if let Some(ips) = assigned {
            assert_eq!(ips.len(), 2);
            for ip in &ips {
                assert!(!taken.contains(ip), "{ip} is somebody else's");
                assert!(pools().iter().any(|pool| pool.hands_out(*ip)), "{ip} is no pool's");
            }
            assert_eq!(ipam.assigned(&self.attachment).expect("what was just written"), ips);
            assert_eq!(ipam.release(&self.attachment).expect("what was just written"), ips);
            assert_eq!(
                ipam.assigned(&self.attachment).expect("what was just written"),
                [] as [IpAddr; 0]
            );
        }
    }

    fn release(&self) {
        let store = self.store();
        let ipam = ipam(&store);
        if self.accept_ipam(&store, ipam.release(&self.attachment)).is_some() {
            let left = ipam.assigned(&self.attachment).expect("there is no handle");
            assert_eq!(left, [] as [IpAddr; 0]);
        }
        self.accept(&store, store.delete_endpoint(&self.attachment, NODE));
        assert!(store.endpoint(&self.attachment).expect("there is none").is_none());
    }

    fn reclaim(&self) {
        for is_alive in [false, true] {
            let store = self.store();
            let ipam = ipam(&store);
            let reclaimed = ipam.reclaim_earlier_boots(&|_| is_alive);
            if self.accept_ipam(&store, reclaimed).is_some() {
                let again = ipam.reclaim_earlier_boots(&|_| is_alive).expect("a single read");
                assert_eq!(again, []);
            }
        }
    }

    /// Whatever other nodes were told of blocks, in the end it is what those say that can be read.
    fn place(&self) {
        let store = self.store();
        self.accept_ipam(&store, store.place_blocks());
        self.accept_ipam(&store, ipam(&store).tend_blocks());
        for block in self.accept(&store, store.misplaced_blocks()).unwrap_or_default() {
            self.accept_ipam(&store, store.place_block(&block));
        }
        assert_eq!(store.misplaced_blocks().expect("memory"), []);
        for topic in Topic::ALL {
            let (_, changes) = store.survey(topic).expect("memory");
            for Change { key, fact } in changes {
                if let Some(Err(error)) = fact {
                    assert!(error.to_string().contains(&key), "{error} is of {key}");
                }
            }
        }
    }

    fn remove_pools(&self) {
        let store = self.store();
        let ipam = ipam(&store);
        for pool in pools() {
            self.accept_ipam(&store, ipam.delete_pool(&pool.cidr));
        }
    }

    fn remove_node(&self) {
        let store = self.store();
        match remove_node(&store, NODE, Caution::Forced) {
            Ok(_) => {
                let again = remove_node(&store, NODE, Caution::Forced).expect("nothing is left");
                assert!(again.is_empty(), "{again:?}");
            }
            Err(RemoveNodeError::Store(error)) => drop(self.accept::<()>(&store, Err(error))),
            Err(error) => assert_one_line(&chain(&error)),
        }
    }

    /// As an agent does: whatever others have written, no way but to addresses of pools.
    fn find_ways(&self) {
        let store = self.store();
        let mut topology = Topology::default();
        for topic in Topic::ALL {
            let (_, changes) = store.survey(topic).expect("memory");
            topology.learn(News::Listed(topic, changes));
        }
        assert!(topology.is_complete());
        let addresses = ["192.168.0.1/24", "fd99::1/64"].map(|text| text.parse().expect("cidr"));
        for (to, way) in RemoteTable::of(&topology, NODE, &addresses).ways {
            let is_of =
                |pool: &Pool| pool.cidr.contains(to.ip()) && pool.cidr.prefix() <= to.prefix();
            assert!(topology.pools.values().any(is_of), "{to} is of no pool: {way:?}");
        }
    }

    fn accept_ipam<T>(&self, store: &Store, outcome: Result<T, IpamError>) -> Option<T> {
        match outcome {
            Err(IpamError::Store(error)) => self.accept(store, Err(error)),
            Err(IpamError::Contended) => panic!("there is nobody else"),
            other => self.accept_any(other),
        }
    }

    fn accept<T>(&self, store: &Store, outcome: Result<T, StoreError>) -> Option<T> {
        if let Err(StoreError::Decode { key, .. }) = &outcome {
            let value = store.backend().get(key).expect("memory").expect("the record is there");
            let before = self.content.get(key).unwrap_or_else(|| panic!("{key} was written here"));
            assert_eq!(value.value, *before, "{key} does not decode, and was changed");
        }
        self.accept_any(outcome)
    }

    fn accept_any<T, E: Error>(&self, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|error| assert_one_line(&chain(&error))).ok()
    }

    fn check_unchanged(&self, store: &Store) {
        let after = store.backend().list("", None).expect("memory");
        let after: BTreeMap<_, _> = after.into_iter().map(|v| (v.key, v.value)).collect();
        assert_eq!(after, self.content, "reading writes");
    }
}

fn ipam(store: &Store) -> Ipam<'_> {
    Ipam::new(store, NODE, BOOT).cool_down(Duration::ZERO)
}

fn pools() -> Vec<Pool> {
    [("10.244.0.0/24", 26), ("fd00::/120", 122)]
        .map(|(cidr, block_size)| Pool { block_size, ..Pool::new(cidr.parse().expect("cidr")) })
        .into()
}

/// Every address that stands under `taken` in any record.
fn taken(store: &Store) -> BTreeSet<IpAddr> {
    let blocks = store.backend().list("blocks/", None).expect("memory");
    let documents = blocks.iter().filter_map(|v| serde_json::from_slice::<Value>(&v.value).ok());
    let taken = documents.filter_map(|document| Some(document.get("taken")?.as_object()?.clone()));
    taken.flat_map(|taken| taken.into_iter().filter_map(|(ip, _)| ip.parse().ok())).collect()
}
