//! What a node has to know of all the others: listed once, and then followed change by change.
//!
//! Invariant: a list comes with the revision to follow it from, and what happens between the two is
//! not lost. A record that does not decode is handed on as such, under its key: whoever follows
//! decides whether what was known before still counts.

use std::time::Duration;

use crate::backend::{Event, Revision, Versioned, Watch};
use crate::ipam::{Placement, Pool};
use crate::keys;
use crate::records::Node;
use crate::store::{Store, StoreError, decode};

/// Kinds of records that can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Every node.
    Nodes,
    /// Every pool.
    Pools,
    /// Every block, of both families, by its placement: the block itself is written for each pod.
    Blocks,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Of [`Topic::Nodes`].
    Node(Node),
    /// Of [`Topic::Pools`].
    Pool(Pool),
    /// Of [`Topic::Blocks`].
    Block(Placement),
}

/// A record as it is from some revision on.
#[derive(Debug)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// What it says; `None` if it is gone.
    pub fact: Option<Result<Fact, StoreError>>,
}

/// The changes of one topic.
pub struct Follower {
    topic: Topic,
    watch: Box<dyn Watch>,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Pools, Self::Blocks];

    fn prefix(self) -> &'static str {
        match self {
            Self::Nodes => keys::NODES,
            Self::Pools => keys::POOLS,
            Self::Blocks => keys::PLACEMENTS,
        }
    }

    /// A block that its node gave up is as good as gone: whoever claims it writes it.
    fn read(self, versioned: &Versioned) -> Result<Option<Fact>, StoreError> {
        Ok(match self {
            Self::Nodes => Some(Fact::Node(decode(versioned)?.record)),
            Self::Pools => Some(Fact::Pool(decode(versioned)?.record)),
            Self::Blocks => {
                let block = decode::<Placement>(versioned)?.record;
                (!block.is_nobodys()).then_some(Fact::Block(block))
            }
        })
    }

    fn change(self, versioned: &Versioned) -> Change {
        Change { key: versioned.key.clone(), fact: self.read(versioned).transpose() }
    }
}

impl Store {
    /// Every record of a topic, and the revision to [`follow`](Self::follow) it from.
    pub fn survey(&self, topic: Topic) -> Result<(Revision, Vec<Change>), StoreError> {
        let revision = self.backend().revision()?;
        let listed = self.backend().list(topic.prefix(), None)?;
        Ok((revision, listed.iter().map(|versioned| topic.change(versioned)).collect()))
    }

    /// The changes of a topic that are newer than `after`.
    ///
    /// [`BackendError::Compacted`](crate::BackendError::Compacted) asks for another survey.
    pub fn follow(&self, topic: Topic, after: Revision) -> Result<Follower, StoreError> {
        Ok(Follower { topic, watch: self.backend().watch(topic.prefix(), after)? })
    }
}

impl Follower {
    /// The next change, or `None` if there was none within `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Change>, StoreError> {
        Ok(self.watch.next(timeout)?.map(|event| match event {
            Event::Put(versioned) => self.topic.change(&versioned),
            Event::Delete { key, .. } => Change { key, fact: None },
        }))
    }
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;

    use super::*;
    use crate::testing::Memory;
    use crate::{AssignRequest, Attachment, Ipam};

    #[test]
    fn a_borrowed_address_is_seen_where_it_is() {
        let store = Store::new(Memory::default());
        let pool = Pool { block_size: 30, ..Pool::new("10.1.0.0/30".parse().unwrap()) };
        assign(&store, "a", "one", &pool);
        let (revision, changes) = store.survey(Topic::Blocks).unwrap();
        assert!(matches!(&changes[..], [Change { fact: Some(Ok(Fact::Block(block))), .. }]
            if block.node == "a" && block.borrowed.is_empty()));

        let mut follower = store.follow(Topic::Blocks, revision).unwrap();
        let ip = assign(&store, "b", "two", &pool);

        let change = follower.next(Duration::ZERO).unwrap().unwrap();
        let Some(Ok(Fact::Block(block))) = change.fact else { panic!("{change:?}") };
        assert_eq!((block.cidr, block.node.as_str()), (pool.cidr, "a"));
        assert_eq!(block.borrowed.into_iter().collect::<Vec<_>>(), [(ip, "b".to_owned())]);
    }

    #[test]
    fn a_block_that_was_given_up_is_gone() {
        let store = Store::new(Memory::default());
        let pool = Pool { block_size: 30, ..Pool::new("10.1.0.0/30".parse().unwrap()) };
        assign(&store, "a", "one", &pool);
        let (revision, _) = store.survey(Topic::Blocks).unwrap();
        let node = Ipam::new(&store, "a", "boot").cool_down(Duration::ZERO);
        node.release(&Attachment::new("n", "one", "eth0").unwrap()).unwrap();

        assert_eq!(node.tend_blocks().unwrap().released, [pool.cidr]);

        let (_, changes) = store.survey(Topic::Blocks).unwrap();
        assert!(matches!(&changes[..], [Change { fact: None, .. }]), "{changes:?}");
        let mut follower = store.follow(Topic::Blocks, revision).unwrap();
        let mut last = None;
        while let Some(change) = follower.next(Duration::ZERO).unwrap() {
            last = Some(change);
        }
        assert!(last.unwrap().fact.is_none());
    }

    #[test]
    fn a_record_that_does_not_decode_is_handed_on_under_its_key() {
        let store = Store::new(Memory::default());
        store.backend().create("nodes/a", b"{}").unwrap();

        let (revision, changes) = store.survey(Topic::Nodes).unwrap();
        assert!(matches!(&changes[..], [Change { fact: Some(Err(_)), key }] if key == "nodes/a"));

        let mut follower = store.follow(Topic::Nodes, revision).unwrap();
        store.backend().delete("nodes/a", None).unwrap();
        let change = follower.next(Duration::ZERO).unwrap().unwrap();
        assert!(change.fact.is_none() && change.key == "nodes/a");
    }

    #[test]
    fn the_parts_of_a_nodes_record_do_not_overwrite_each_other() {
        let store = Store::new(Memory::default());
        let address: IpNetwork = "192.168.0.1/24".parse().unwrap();
        store.update_node("a", |node| node.addresses = vec![address]).unwrap();

        Ipam::new(&store, "a", "boot").reclaim_earlier_boots(&|_| false).unwrap();
        // Somebody else writes in the middle of a change.
        let mut turns = 0;
        let changed = store.update_node("a", |node| {
            turns += 1;
            if turns == 1 {
                let overlay = crate::OverlayEnd { mac: [2; 6], addresses: vec![] };
                store.update_node("a", |node| node.overlay = Some(overlay.clone())).unwrap();
            }
            node.addresses.clear();
        });

        let node = store.node("a").unwrap().unwrap();
        assert_eq!(changed.unwrap(), node);
        assert_eq!((node.boot_id.as_str(), turns), ("boot", 2));
        assert!(node.addresses.is_empty() && node.overlay.is_some());
    }

    fn assign(store: &Store, node: &str, container: &str, pool: &Pool) -> std::net::IpAddr {
        let request = AssignRequest {
            attachment: Attachment::new("n", container, "eth0").unwrap(),
            pod: None,
            netns: None,
            pools: vec![pool.clone()],
            ipv4: true,
            ipv6: false,
            requested: vec![],
            strict_affinity: false,
        };
        Ipam::new(store, node, "boot").assign(&request).unwrap()[0]
    }
}
