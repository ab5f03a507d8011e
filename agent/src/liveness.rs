//! Which nodes have an agent that runs.
//!
//! Each agent writes its node's heartbeat again and again. Others look whether the record has been
//! written since they looked last, and count the time by their own clock. A node that is silent is shown
//! as such and nothing more: its pods may be alive, and only its agent, or its way to the datastore, not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use margay_datastore::{HEARTBEAT_INTERVAL, Heartbeat, Revision, Store, StoreError};

/// How often the heartbeat is written, and those of others are looked at. Nobody follows them: with
/// *n* nodes that would be *n* times *n* messages.
pub const INTERVAL: Duration = HEARTBEAT_INTERVAL;
/// After how long without a heartbeat a node is silent.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The heartbeats, as this agent has seen them change.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: BTreeMap<String, Heard>,
}

#[derive(Debug)]
struct Heard {
    revision: Revision,
    at: Instant,
    is_silent: bool,
}

/// Writes this node's heartbeat, and reads those of all.
///
/// # Errors
/// When the datastore fails.
pub fn exchange(store: &Store, node: &str) -> Result<Vec<(Heartbeat, Revision)>, StoreError> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    store.put_heartbeat(&Heartbeat { node: node.to_owned(), at })?;
    store.heartbeats()
}

impl Liveness {
    /// Takes in what was read at `now`, and logs who fell silent and who is back.
    pub fn learn(&mut self, heartbeats: Vec<(Heartbeat, Revision)>, now: Instant) {
        self.heard.retain(|node, _| heartbeats.iter().any(|(beat, _)| beat.node == *node));
        for (Heartbeat { node, .. }, revision) in heartbeats {
            let fresh = Heard { revision, at: now, is_silent: false };
            let heard = self.heard.entry(node.clone()).or_insert(fresh);
            if heard.revision != revision {
                if heard.is_silent {
                    tracing::info!(node, "is heard of again");
                }
                *heard = Heard { revision, at: now, is_silent: false };
            } else if !heard.is_silent && now.duration_since(heard.at) >= PATIENCE {
                heard.is_silent = true;
                tracing::warn!(node, "is silent; the routes to its pods stay");
            }
        }
    }

    /// Whether the node's agent was heard of lately.
    #[must_use]
    pub fn is_heard(&self, node: &str) -> bool {
        self.heard.get(node).is_some_and(|heard| !heard.is_silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(revisions: &[(&str, u64)]) -> Vec<(Heartbeat, Revision)> {
        let beat = |node: &str| Heartbeat { node: node.into(), at: 0 };
        revisions.iter().map(|(node, revision)| (beat(node), Revision(*revision))).collect()
    }

    #[test]
    fn who_writes_no_more_is_silent_after_a_while_and_whoever_writes_again_is_back() {
        let (mut liveness, start) = (Liveness::default(), Instant::now());
        liveness.learn(beats(&[("a", 1), ("b", 2)]), start);
        assert!(liveness.is_heard("a") && liveness.is_heard("b") && !liveness.is_heard("c"));

        liveness.learn(beats(&[("a", 3), ("b", 2)]), start + PATIENCE);
        assert!(liveness.is_heard("a") && !liveness.is_heard("b"));

        liveness.learn(beats(&[("a", 3), ("b", 4)]), start + PATIENCE + INTERVAL);
        assert!(liveness.is_heard("a") && liveness.is_heard("b"));

        liveness.learn(beats(&[("a", 5)]), start + 2 * PATIENCE);
        assert!(!liveness.is_heard("b"), "its record was taken away");
    }
}
