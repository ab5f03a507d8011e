//! What the datastore says of all nodes, as far as it concerns the ways between them.

use std::collections::BTreeMap;

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

    /// Takes news in. Of a record that does not decode, what was known before stays: whoever wrote it
    /// may be of a newer version, and its pods are where they were.
    pub fn learn(&mut self, news: News) {
        match news {
            News::Changed(_, change) => self.change(change),
            News::Listed(topic, changes) => {
                self.keep_only(topic, |key| changes.iter().any(|change| change.key == *key));
                changes.into_iter().for_each(|change| self.change(change));
                if !self.listed.contains(&topic) {
                    self.listed.push(topic);
                }
            }
        }
    }

    fn keep_only(&mut self, topic: Topic, is_there: impl Fn(&String) -> bool) {
        match topic {
            Topic::Nodes => self.nodes.retain(|key, _| is_there(key)),
            Topic::Pools => self.pools.retain(|key, _| is_there(key)),
            Topic::Blocks => self.blocks.retain(|key, _| is_there(key)),
        }
    }

    fn change(&mut self, Change { key, fact }: Change) {
        match fact {
            Some(Ok(Fact::Node(node))) => drop(self.nodes.insert(key, node)),
            Some(Ok(Fact::Pool(pool))) => drop(self.pools.insert(key, pool)),
            Some(Ok(Fact::Block(block))) => drop(self.blocks.insert(key, block)),
            Some(Err(error)) => {
                tracing::error!(error = chain(&error), "what was known of it before stays");
            }
            // The key says what it was of; it is in one of the three at most.
            None => {
                self.nodes.remove(&key);
                self.pools.remove(&key);
                self.blocks.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use margay_datastore::Store;
    use margay_datastore::testing::Memory;

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
