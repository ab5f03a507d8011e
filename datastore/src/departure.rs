//! Removing a node that is gone for good: whatever the datastore has of it.
//!
//! Nothing else does, since from outside a node that is gone looks like one that nobody can reach. So
//! an operator says so, and is not taken at his word while the node's agent is heard of.
//!
//! | step | a crash after it leaves | why that is safe |
//! | --- | --- | --- |
//! | 1. endpoints | addresses of pods that have no record | as after a DEL that died there |
//! | 2. addresses, of pods and of the overlay, in whatever block, and their handles; at last those without a handle | blocks without slots of the node | nobody routes to them but in vain |
//! | 3. blocks, each given up with the slots that other nodes have in it; its affinity, its hint | the node without blocks | they are anybody's |
//! | 4. heartbeat | the node's record | whoever looks sees a node that holds nothing |
//! | 5. the record of the node | – | done |
//!
//! The record goes last, so that a node is to be seen until there is nothing left of it. Every step goes
//! by the node's name alone, so whatever was done is skipped by the next call, record or not.
//!
//! Invariant: only what was there when it was looked at is removed, each record by its revision, each
//! address by its assignment. So a node that comes back in the middle loses no address that it has taken
//! since, and what others borrow or give back at the same time is theirs or free.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{cmp, thread};

use ipnetwork::IpNetwork;

use crate::Attachment;
use crate::backend::Revision;
use crate::ipam::{Family, Ipam, IpamError, won};
use crate::keys;
use crate::records::Heartbeat;
use crate::store::{Store, StoreError, decode};

/// How often the agent of a node writes its [`Heartbeat`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// How often a heartbeat is looked at that is to stand still.
const LOOK: Duration = Duration::from_millis(500);

/// What [`remove_node`] makes sure of before it removes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caution {
    /// That the node's agent writes no heartbeat for this long, by the caller's clock. One that was
    /// written lately by this machine's clock is refused without waiting.
    Observe(Duration),
    /// Nothing. Of a node that runs on, pods keep addresses that others then get.
    Forced,
}

impl Default for Caution {
    /// Long enough for two heartbeats.
    fn default() -> Self {
        Self::Observe(2 * HEARTBEAT_INTERVAL + Duration::from_secs(5))
    }
}

/// What a call of [`remove_node`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemovedNode {
    /// Endpoints of its pods.
    pub endpoints: Vec<Attachment>,
    /// Who had which addresses: its pods, and its end of the overlay.
    pub released: Vec<(Attachment, Vec<IpAddr>)>,
    /// Blocks that it had.
    pub blocks: Vec<IpNetwork>,
    /// Whether it had a heartbeat.
    pub heartbeat: bool,
    /// Whether it had a record.
    pub record: bool,
}

impl RemovedNode {
    /// Whether there was nothing of the node at all: it is unknown.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a node was not removed, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum RemoveNodeError {
    /// Its agent runs. Nothing was removed.
    #[error("node {node} is alive: its agent writes heartbeats")]
    Alive {
        /// The node.
        node: String,
    },
    /// It came back while it was being removed, and has what it has taken since.
    #[error("node {node} is back: {key} was written while it was being removed")]
    Back {
        /// The node.
        node: String,
        /// What was written.
        key: String,
    },
    /// Its addresses or blocks could not be taken back.
    #[error("addresses of node {node}")]
    Addresses {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: Box<IpamError>,
    },
    /// The datastore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoveNodeError {
    /// Whether the same call may well succeed a little later with nobody having mended anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Alive { .. } | Self::Back { .. } => false,
            Self::Addresses { source, .. } => source.is_transient(),
            Self::Store(error) => error.is_transient(),
        }
    }
}

/// Removes all that the datastore has of `node`: endpoints, addresses in its own blocks and in those of
/// others, blocks, heartbeat and record. What other nodes have borrowed of its blocks stays theirs.
///
/// Can be repeated, also after a crash; a node that is not known is an empty report. A node that was
/// removed and comes back registers as a new one. Its machine has to have booted since, or its pods go
/// on with addresses that may be others'.
///
/// # Errors
/// When the node is alive, comes back meanwhile, or the datastore fails. After the last two some of it is
/// removed.
pub fn remove_node(
    store: &Store,
    node: &str,
    caution: Caution,
) -> Result<RemovedNode, RemoveNodeError> {
    let record = revision(store, &keys::node(node))?;
    let heartbeat = Beat::read(store, node)?;
    if let Caution::Observe(time) = caution {
        heartbeat.observe(store, node, time)?;
    }
    let mut removed = RemovedNode { endpoints: remove_endpoints(store, node)?, ..<_>::default() };
    let ipam = Ipam::new(store, node, "");
    let addresses = |source| {
        let source = Box::new(source);
        RemoveNodeError::Addresses { node: node.to_owned(), source }
    };
    removed.released = ipam.release_all().map_err(addresses)?;
    removed.released.extend(ipam.release_orphans().map_err(addresses)?);
    for block in ipam.claimed_blocks().map_err(addresses)? {
        if !ipam.leave(&block).map_err(addresses)? {
            let (node, key) = (node.to_owned(), keys::block(&block.cidr()));
            return Err(RemoveNodeError::Back { node, key });
        }
        removed.blocks.push(block.cidr());
    }
    ipam.remove_hints().map_err(addresses)?;
    removed.heartbeat = remove_unchanged(store, node, keys::alive(node), heartbeat.revision)?;
    removed.record = remove_unchanged(store, node, keys::node(node), record)?;
    Ok(removed)
}

impl Store {
    /// Whether anything at all of a node is written down, such as [`remove_node`] would remove. Where nothing is, every block has
    /// been read.
    pub fn has_anything_of(&self, node: &str) -> Result<bool, StoreError> {
        for key in [keys::node(node), keys::alive(node)] {
            if self.backend().get(&key)?.is_some() {
                return Ok(true);
            }
        }
        let hints = [Family::V4, Family::V6].map(|family| keys::open_of(node, family));
        for prefix in hints.into_iter().chain([keys::on_node(node)]) {
            if !self.backend().keys(&prefix)?.is_empty() {
                return Ok(true);
            }
        }
        let ledger = self.ledger()?;
        // What does not decode may be its.
        Ok(!ledger.illegible.is_empty()
            || ledger.endpoints.iter().any(|endpoint| endpoint.node == node)
            || ledger.holders.iter().any(|holder| holder.node == node)
            || ledger.blocks.iter().any(|block| {
                let names = [&block.node, &block.claimed_by].into_iter().flatten();
                names.chain(block.taken.values().map(|slot| &slot.node)).any(|name| name == node)
            }))
    }
}

/// A node's heartbeat as it was read.
struct Beat {
    /// `None` if there is none.
    revision: Option<Revision>,
    /// In seconds since the Unix epoch, by the node's clock.
    at: Option<u64>,
}

impl Beat {
    fn read(store: &Store, node: &str) -> Result<Self, StoreError> {
        let found = store.backend().get(&keys::alive(node))?;
        let at = found.as_ref().and_then(|found| Some(decode::<Heartbeat>(found).ok()?.record.at));
        Ok(Self { revision: found.map(|found| found.revision), at })
    }

    /// Refuses a node whose heartbeat is of late, or is written within `time`.
    fn observe(&self, store: &Store, node: &str, time: Duration) -> Result<(), RemoveNodeError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let is_of_late =
            |at: u64| Duration::from_secs(now.abs_diff(at)) < HEARTBEAT_INTERVAL && !time.is_zero();
        let mut is_alive = self.at.is_some_and(is_of_late);
        let deadline = Instant::now() + time;
        while !is_alive && Instant::now() < deadline {
            thread::sleep(cmp::min(LOOK, deadline.saturating_duration_since(Instant::now())));
            is_alive = Self::read(store, node)?.revision != self.revision;
        }
        match is_alive {
            true => Err(RemoveNodeError::Alive { node: node.to_owned() }),
            false => Ok(()),
        }
    }
}

fn revision(store: &Store, key: &str) -> Result<Option<Revision>, StoreError> {
    Ok(store.backend().get(key)?.map(|found| found.revision))
}

fn remove_endpoints(store: &Store, node: &str) -> Result<Vec<Attachment>, RemoveNodeError> {
    let mut removed = Vec::new();
    for endpoint in store.endpoints_on(node)? {
        let attachment = endpoint.attachment;
        let Some((endpoint, revision)) = store.endpoint_at(&attachment)? else { continue };
        if endpoint.node != node {
            continue;
        }
        match won(store.delete_endpoint_at(&endpoint, revision))? {
            Some(true) => removed.push(attachment),
            Some(false) => {}
            None => {
                let (node, key) = (node.to_owned(), keys::endpoint(&attachment));
                return Err(RemoveNodeError::Back { node, key });
            }
        }
    }
    Ok(removed)
}

/// Removes a record of the node if it is as it was; false if there was none.
fn remove_unchanged(
    store: &Store,
    node: &str,
    key: String,
    before: Option<Revision>,
) -> Result<bool, RemoveNodeError> {
    let back = |key| RemoveNodeError::Back { node: node.to_owned(), key };
    match before {
        None if store.backend().get(&key).map_err(StoreError::from)?.is_none() => Ok(false),
        None => Err(back(key)),
        Some(_) => won(store.remove(&key, before))?.ok_or_else(|| back(key)),
    }
}
