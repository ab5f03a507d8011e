//! What the datastore says of all nodes, as far as it concerns the ways between them.

use std::collections::{BTreeMap, HashSet};

use margay::error::chain;
use margay_datastore::{Change, Fact, Node, Placement, Pool, Topic};

/// Nodes, pools and blocks, each by the key of its record.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// The nodes.
    pub nodes: BTreeMap<String, Node>,
    /// The pools.
    pub pools: BTreeMap<String, Pool>,
    /// The blocks.
    pub blocks: BTreeMap<String, Placement>,
    pub(crate) listed: Vec<Topic>,
}

/// What a follower has to say.
#[derive(Debug)]
pub enum News {
    /// Everything that there is of a topic.
    Listed(Topic, Vec<Change>),
    /// One record.
    Changed(Topic, Change),
}

impl Topology {
    /// Whether every topic has been listed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        Topic::ALL.iter().all(|topic| self.listed.contains(topic))
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// Takes news in, and says whether a way may follow from them. Of a record that does not decode, what was known
    /// before stays: whoever wrote it may be of a newer version, and its pods are where they were.
    pub fn learn(&mut self, news: News) -> bool {
        match news {
            News::Changed(_, change) => self.change(change),
            News::Listed(topic, changes) => {
                let keys = changes.iter().map(|change| change.key.clone()).collect();
                let mut is_news = self.keep_only(topic, &keys);
                for change in changes {
                    is_news |= self.change(change);
                }
                if !self.listed.contains(&topic) {
                    self.listed.push(topic);
                    is_news = true;
                }
                is_news
            }
        }
    }

    fn keep_only(&mut self, topic: Topic, keys: &HashSet<String>) -> bool {
        match topic {
            Topic::Nodes => keep_only(&mut self.nodes, keys),
            Topic::Pools => keep_only(&mut self.pools, keys),
            Topic::Blocks => keep_only(&mut self.blocks, keys),
        }
    }

    fn change(&mut self, Change { key, fact }: Change) -> bool {
        match fact {
            Some(Ok(Fact::Node(node))) => put(&mut self.nodes, key, node),
            Some(Ok(Fact::Pool(pool))) => put(&mut self.pools, key, pool),
            Some(Ok(Fact::Block(block))) => put(&mut self.blocks, key, block),
            Some(Err(error)) => {
                tracing::error!(error = chain(&error), "what was known of it before stays");
                false
            }
            // The key says what it was of; it is in one of the three at most.
            None => {
                self.nodes.remove(&key).is_some()
                    || self.pools.remove(&key).is_some()
                    || self.blocks.remove(&key).is_some()
            }
        }
    }
}

/// Whether it was not known already.
fn put<T: PartialEq>(records: &mut BTreeMap<String, T>, key: String, record: T) -> bool {
    let is_news = records.get(&key) != Some(&record);
    if is_news {
        records.insert(key, record);
    }
    is_news
}

/// Whether there was something else.
fn keep_only<T>(records: &mut BTreeMap<String, T>, keys: &HashSet<String>) -> bool {
    let before = records.len();
    records.retain(|key, _| keys.contains(key));
    records.len() != before
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use margay_datastore::testing::Memory;
    use margay_datastore::{AssignRequest, Attachment, Ipam, Store};

    use super::*;

    fn listed(store: &Store, topic: Topic) -> News {
        News::Listed(topic, store.survey(topic).unwrap().1)
    }

    #[test]
    fn it_is_complete_when_everything_was_listed_once() {
        let store = Store::new(Memory::default());
        let mut topology = Topology::default();
        for topic in Topic::ALL {
            assert!(!topology.is_complete());
            topology.learn(listed(&store, topic));
        }
        assert!(topology.is_complete());
    }

    #[test]
    fn another_pod_in_a_block_is_not_heard_of_and_a_borrowed_address_is() {
        let store = Store::new(Memory::default());
        let pool = Pool { block_size: 29, ..Pool::new("10.1.0.0/29".parse().unwrap()) };
        assign(&store, "a", "one", &pool);
        let (revision, listed) = store.survey(Topic::Blocks).unwrap();
        let mut topology = Topology::default();
        assert!(topology.learn(News::Listed(Topic::Blocks, listed)));
        assert!(!topology.learn(self::listed(&store, Topic::Blocks)));
        let mut follower = store.follow(Topic::Blocks, revision).unwrap();

        assign(&store, "a", "two", &pool);
        assert!(follower.next(Duration::ZERO).unwrap().is_none());
        let mut learn = |topology: &mut Topology| {
            let change = follower.next(Duration::ZERO).unwrap().unwrap();
            topology.learn(News::Changed(Topic::Blocks, change))
        };

        assign(&store, "b", "three", &pool);
        assert!(learn(&mut topology));
        assert_eq!(topology.blocks.values().next().unwrap().borrowed.len(), 1);

        let key = topology.blocks.keys().next().unwrap().clone();
        store.backend().delete(&key, None).unwrap();
        assert!(learn(&mut topology));
        assert!(topology.blocks.is_empty());
    }

    fn assign(store: &Store, node: &str, container: &str, pool: &Pool) {
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
        Ipam::new(store, node, "boot").assign(&request).unwrap();
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_hold_and_keeps_what_it_cannot_read() {
        let store = Store::new(Memory::default());
        for name in ["gone", "damaged"] {
            store.update_node(name, |node| node.boot_id = "1".into()).unwrap();
        }
        let mut topology = Topology::default();
        topology.learn(listed(&store, Topic::Nodes));
        store.backend().delete("nodes/gone", None).unwrap();
        let damaged = store.backend().get("nodes/damaged").unwrap().unwrap();
        store.backend().update("nodes/damaged", b"?", damaged.revision).unwrap();

        topology.learn(listed(&store, Topic::Nodes));

        let names: Vec<_> = topology.nodes.values().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["damaged"]);
    }
}
