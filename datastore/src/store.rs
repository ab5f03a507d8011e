//! Typed records over any [`Backend`].
//!
//! Values are JSON, one record per key (see `keys.rs` for the layout). A record that does not
//! decode, or that belongs under another key, is an error that names its key; nothing is guessed,
//! nothing is overwritten because of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Attachment;
use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Write};
use crate::ipam::{Pool, won};
use crate::keys;
use crate::records::{Endpoint, Heartbeat, Node};

/// The typed view of a store; cheap to clone, all clones share the backend.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The backend refused or failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// What is stored is not the record that belongs there.
    #[error("record {key} does not decode")]
    Decode {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record could not be turned into JSON.
    #[error("record {key} does not encode")]
    Encode {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl StoreError {
    /// Whether the same call may well succeed a little later with nobody having mended anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Backend(error) if error.is_transient())
    }

    /// Whether what the change was to go by was changed by somebody else.
    pub(crate) fn is_outdated(&self) -> bool {
        matches!(self, Self::Backend(BackendError::Outdated { .. }))
    }

    /// See [`BackendError::is_out_of_reach`].
    pub fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Backend(error) if error.is_out_of_reach())
    }
}

/// What is stored under a key.
pub(crate) trait Record: DeserializeOwned {
    /// The one key that it belongs under.
    fn key(&self) -> String;

    /// What is wrong with a record that decodes and that nobody here would have written.
    fn defect(&self) -> Option<String> {
        None
    }
}

impl Record for Endpoint {
    fn key(&self) -> String {
        keys::endpoint(&self.attachment)
    }
}

impl Record for Node {
    fn key(&self) -> String {
        keys::node(&self.name)
    }
}

impl Record for Heartbeat {
    fn key(&self) -> String {
        keys::alive(&self.node)
    }
}

impl Record for Pool {
    fn key(&self) -> String {
        keys::pool(&self.cidr)
    }

    fn defect(&self) -> Option<String> {
        self.check().err().map(|error| error.to_string())
    }
}

/// A decoded record and the revision it was read at.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) record: T,
    pub(crate) revision: Revision,
}

impl Store {
    /// A typed view of `backend`.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self { backend: Arc::new(backend) }
    }

    /// The backend itself, for watches.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The backend, to put something in front of it.
    #[cfg(test)]
    pub(crate) fn shared_backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// See [`Backend::upkeep`].
    pub fn upkeep(&self) -> Result<(), StoreError> {
        Ok(self.backend.upkeep()?)
    }

    /// The endpoint of `attachment`, if it has one.
    pub fn endpoint(&self, attachment: &Attachment) -> Result<Option<Endpoint>, StoreError> {
        Ok(self.read(&keys::endpoint(attachment))?.map(|stored| stored.record))
    }

    /// Writes an endpoint, replacing what was stored for its attachment.
    pub fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let key = keys::endpoint(&endpoint.attachment);
        let mark = keys::on(&endpoint.node, &key);
        self.put_along(&key, endpoint, |before| {
            // One of the same attachment on another node, or on this one under another name.
            let mut others = match before.map(decode::<Endpoint>) {
                None => Vec::new(),
                Some(Ok(before)) => vec![keys::on(&before.record.node, &key)],
                Some(Err(_)) => self.marks_of(&key)?,
            };
            others.retain(|other| *other != mark);
            let others = others.into_iter().map(Along::remove);
            Ok(others.chain([Along::mark(mark.clone())]).collect())
        })
    }

    /// The endpoint that was written for `attachment`, and the revision to remove it by.
    pub fn endpoint_at(
        &self,
        attachment: &Attachment,
    ) -> Result<Option<(Endpoint, Revision)>, StoreError> {
        let stored = self.read(&keys::endpoint(attachment))?;
        Ok(stored.map(|Stored { record, revision }| (record, revision)))
    }

    /// Removes an endpoint if it is still the one of `revision`; false if there is
    /// none. A request of this kind that is carried out late, after its sender has given it up,
    /// removes nothing that was written since.
    pub fn delete_endpoint_at(
        &self,
        endpoint: &Endpoint,
        revision: Revision,
    ) -> Result<bool, StoreError> {
        let key = keys::endpoint(&endpoint.attachment);
        let along = [Along::remove(keys::on(&endpoint.node, &key))];
        self.remove_along(&key, Some(revision), &along)
    }

    /// Removes the endpoint of `attachment` on `node`, whatever it is; false if there was none. For one that
    /// does not decode.
    pub fn delete_endpoint(&self, attachment: &Attachment, node: &str) -> Result<bool, StoreError> {
        let key = keys::endpoint(attachment);
        let own = keys::on(node, &key);
        let mut marks = self.marks_of(&key)?;
        marks.retain(|mark| *mark != own);
        let along: Vec<Along> = marks.into_iter().chain([own]).map(Along::remove).collect();
        self.remove_along(&key, None, &along)
    }

    /// Wherever it is told that the record under `key` is of a node. Reads what every node has: for a
    /// record that does not tell its node.
    fn marks_of(&self, key: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.backend.list(keys::ON, None)?.into_iter().map(|mark| mark.key);
        Ok(listed.filter(|mark| keys::is_on(mark, key)).collect())
    }

    /// All endpoints of a network, in the order of container ID and interface.
    pub fn endpoints(&self, network: &str) -> Result<Vec<Endpoint>, StoreError> {
        self.read_all(&keys::endpoints(network))
    }

    /// The record of a node, if it has one.
    pub fn node(&self, name: &str) -> Result<Option<Node>, StoreError> {
        Ok(self.read(&keys::node(name))?.map(|stored| stored.record))
    }

    /// Changes the record of a node, or a new one if there is none. Whoever else writes meanwhile loses
    /// nothing: `change` is called again with what there is then. Writes nothing where nothing changes.
    pub fn update_node(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Node),
    ) -> Result<Node, StoreError> {
        let key = keys::node(name);
        loop {
            let before = self.read::<Node>(&key)?;
            let current = before.as_ref().map(|stored| stored.record.clone());
            let mut node =
                current.unwrap_or_else(|| Node { name: name.to_owned(), ..Node::default() });
            change(&mut node);
            let written = match &before {
                Some(stored) if stored.record == node => return Ok(node),
                Some(stored) => self.update(&key, &node, stored.revision),
                None => self.create(&key, &node),
            };
            if won(written)?.is_some() {
                return Ok(node);
            }
        }
    }

    /// Every attachment that has an endpoint or holds addresses on a node, of whatever network. Reads no
    /// record.
    pub fn attachments_on(&self, node: &str) -> Result<BTreeSet<Attachment>, StoreError> {
        let keys = self.keys_on(node, "")?;
        let names = keys.iter().filter_map(|key| {
            key.strip_prefix(keys::ENDPOINTS).or_else(|| key.strip_prefix(keys::HANDLES))
        });
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The attachments of a network that have an endpoint on a node.
    pub fn endpoints_of(
        &self,
        network: &str,
        node: &str,
    ) -> Result<BTreeSet<Attachment>, StoreError> {
        let keys = self.keys_on(node, &keys::endpoints(network))?;
        let names = keys.iter().filter_map(|key| key.strip_prefix(keys::ENDPOINTS));
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The endpoints of every network on every node. As [`endpoints_on`](Self::endpoints_on).
    pub fn every_endpoint(&self) -> Result<Vec<Endpoint>, StoreError> {
        let listed = self.backend.list(keys::ENDPOINTS, None)?;
        Ok(listed.iter().filter_map(legible::<Endpoint>).collect())
    }

    /// The endpoints of every network on a node. A record that does not decode is left out and
    /// logged: whoever needs it will be told.
    pub fn endpoints_on(&self, node: &str) -> Result<Vec<Endpoint>, StoreError> {
        let mut endpoints = Vec::new();
        for key in self.keys_on(node, keys::ENDPOINTS)? {
            let found = self.backend.get(&key)?;
            endpoints.extend(found.as_ref().and_then(legible::<Endpoint>));
        }
        endpoints.retain(|endpoint| endpoint.node == node);
        Ok(endpoints)
    }

    /// Writes down that the agent of a node runs.
    pub fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        self.put(&keys::alive(&heartbeat.node), heartbeat)
    }

    /// The record of every node.
    pub fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.read_all(keys::NODES)
    }

    /// Every heartbeat, with the revision of its writing.
    pub fn heartbeats(&self) -> Result<Vec<(Heartbeat, Revision)>, StoreError> {
        let listed = self.backend.list(keys::ALIVE, None)?;
        let decoded = listed.iter().map(decode::<Heartbeat>);
        decoded.map(|stored| stored.map(|stored| (stored.record, stored.revision))).collect()
    }

    /// All pools that addresses were ever asked from, in the order of their keys.
    pub fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.read_all(keys::POOLS)
    }
}

/// Records of any kind, by key.
impl Store {
    pub(crate) fn read<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>, StoreError> {
        self.backend.get(key)?.map(|versioned| decode(&versioned)).transpose()
    }

    pub(crate) fn read_all<T: Record>(&self, prefix: &str) -> Result<Vec<T>, StoreError> {
        Ok(self.list(prefix)?.into_iter().map(|stored| stored.record).collect())
    }

    /// The same, each with its revision.
    pub(crate) fn list<T: Record>(&self, prefix: &str) -> Result<Vec<Stored<T>>, StoreError> {
        self.backend.list(prefix, None)?.iter().map(decode).collect()
    }

    /// The keys below `prefix` whose records are of this node.
    pub(crate) fn keys_on(&self, node: &str, prefix: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.backend.list(&keys::on(node, prefix), None)?;
        let root = keys::on_node(node);
        let keys = listed.iter().filter_map(|mark| mark.key.strip_prefix(&root));
        Ok(keys.map(str::to_owned).collect())
    }

    pub(crate) fn create<T: Serialize>(
        &self,
        key: &str,
        record: &T,
    ) -> Result<Revision, StoreError> {
        self.create_along(key, record, &[])
    }

    pub(crate) fn create_along<T: Serialize>(
        &self,
        key: &str,
        record: &T,
        along: &[Along],
    ) -> Result<Revision, StoreError> {
        Ok(self.backend.write(key, Write::Create(&encode(key, record)?), along)?)
    }

    pub(crate) fn update<T: Serialize>(
        &self,
        key: &str,
        record: &T,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        Ok(self.backend.update(key, &encode(key, record)?, expected)?)
    }

    /// Creates the record, or replaces the one of a revision, as long as what it goes by is unchanged.
    pub(crate) fn write_if<T: Serialize>(
        &self,
        key: &str,
        record: &T,
        expected: Option<Revision>,
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, StoreError> {
        let value = encode(key, record)?;
        Ok(self.backend.write_if(key, Write::after(expected, &value), &[], unchanged)?)
    }

    /// Creates or replaces, whoever wrote it last.
    pub(crate) fn put<T: Serialize>(&self, key: &str, record: &T) -> Result<(), StoreError> {
        self.put_along(key, record, |_| Ok(Vec::new()))
    }

    /// The same, and `along` says what goes with it, by what was there.
    fn put_along<T: Serialize>(
        &self,
        key: &str,
        record: &T,
        along: impl Fn(Option<&Versioned>) -> Result<Vec<Along>, StoreError>,
    ) -> Result<(), StoreError> {
        let value = encode(key, record)?;
        loop {
            match self.backend.write(key, Write::Create(&value), &along(None)?) {
                Err(BackendError::Exists { .. }) => {}
                other => return Ok(other.map(drop)?),
            }
            let Some(current) = self.backend.get(key)? else { continue };
            let update = Write::Update(&value, current.revision);
            match self.backend.write(key, update, &along(Some(&current))?) {
                Err(error) if error.is_lost_race() => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// Removes a key; false if it was not there (any more).
    pub(crate) fn remove(&self, key: &str, expected: Option<Revision>) -> Result<bool, StoreError> {
        was_there(self.backend.write(key, Write::Delete(expected), &[]))
    }

    /// The same, as long as what it goes by is unchanged.
    pub(crate) fn remove_if(
        &self,
        key: &str,
        expected: Option<Revision>,
        unchanged: &Unchanged,
    ) -> Result<bool, StoreError> {
        was_there(self.backend.write_if(key, Write::Delete(expected), &[], Some(unchanged)))
    }

    pub(crate) fn remove_along(
        &self,
        key: &str,
        expected: Option<Revision>,
        along: &[Along],
    ) -> Result<bool, StoreError> {
        was_there(self.backend.write(key, Write::Delete(expected), along))
    }
}

/// Whether there was something to remove.
fn was_there(removed: Result<Revision, BackendError>) -> Result<bool, StoreError> {
    match removed {
        Ok(_) => Ok(true),
        Err(BackendError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The record, or a line in the log where there is none to be read.
pub(crate) fn legible<T: Record>(versioned: &Versioned) -> Option<T> {
    match decode(versioned) {
        Ok(stored) => Some(stored.record),
        Err(error) => {
            tracing::warn!(key = versioned.key, %error, "left as it is");
            None
        }
    }
}

pub(crate) fn decode<T: Record>(versioned: &Versioned) -> Result<Stored<T>, StoreError> {
    let key = &versioned.key;
    let failed = |source| StoreError::Decode { key: key.clone(), source };
    let record: T = serde_json::from_slice(&versioned.value).map_err(failed)?;
    let defect = match record.key() {
        other if other != *key => Some(format!("it is the record of {other}")),
        _ => record.defect(),
    };
    match defect {
        Some(defect) => Err(failed(serde::de::Error::custom(defect))),
        None => Ok(Stored { record, revision: versioned.revision }),
    }
}

pub(crate) fn encode<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Encode { key: key.to_owned(), source })
}
