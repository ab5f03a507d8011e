//! Taking addresses back, and finding who has them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::{Affinity, Block, Handle};
use super::clock::{Patience, now_ms};
use super::placement::AsRead;
use super::select::won;
use super::{Ipam, IpamError};
use crate::Attachment;
use crate::backend::{Along, Write};
use crate::keys;
use crate::records::Endpoint;
use crate::store::{StoreError, Stored, legible};

/// That an attachment holds addresses, or has begun to be given some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Who holds them.
    pub attachment: Attachment,
    /// Unique to one call of [`Ipam::assign`].
    pub assignment: String,
    /// The node that the attachment is on.
    pub node: String,
    /// Path of the network namespace that they are for, if it was named.
    pub netns: Option<String>,
    /// The kernel's boot ID at the time.
    pub boot_id: String,
}

impl From<Handle> for Holding {
    fn from(handle: Handle) -> Self {
        let Handle { attachment, assignment, node, netns, boot_id, .. } = handle;
        Self { attachment, assignment, node, netns, boot_id }
    }
}

impl Ipam<'_> {
    /// Takes back everything that the attachment holds, and says what that was; nothing held is
    /// fine.
    ///
    /// An assignment for the attachment that is on its way in another process either ends before
    /// this, and is taken back, or fails.
    pub fn release(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, IpamError> {
        self.release_if(attachment, &|_| true)
    }

    /// What the attachment holds.
    pub fn assigned(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, IpamError> {
        let Some(handle) = self.store.read::<Handle>(&keys::handle(attachment))? else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        for block in &handle.record.blocks {
            if let Some(stored) = self.read_block(block)? {
                held.extend(stored.record.held_by(&handle.record));
            }
        }
        held.sort();
        Ok(held)
    }

    /// Whether the attachment holds anything, or an assignment for it was begun and cut short: then
    /// it gets nothing before a release.
    pub fn is_known(&self, attachment: &Attachment) -> Result<bool, IpamError> {
        Ok(self.store.backend().get(&keys::handle(attachment)).map_err(StoreError::from)?.is_some())
    }

    /// The attachments of a network on this node that hold addresses, or whose assignment was begun.
    ///
    /// A handle that does not decode is among them: whose it is cannot be told, and whoever wants
    /// to release it should hear of it.
    pub fn attachments(&self, network: &str) -> Result<Vec<Attachment>, IpamError> {
        let keys = self.store.keys_on(&self.node, &keys::handles(network))?;
        let names = keys.iter().filter_map(|key| key.strip_prefix(keys::HANDLES));
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// What every attachment on this node holds, of whatever network. A handle that does not decode
    /// is left out and logged.
    pub fn holdings(&self) -> Result<Vec<Holding>, IpamError> {
        let mut holdings = Vec::new();
        for key in self.store.keys_on(&self.node, keys::HANDLES)? {
            let found = self.store.backend().get(&key)?;
            holdings.extend(found.as_ref().and_then(legible::<Handle>).map(Holding::from));
        }
        Ok(holdings)
    }

    /// What one attachment holds, on whatever node.
    pub fn holding(&self, attachment: &Attachment) -> Result<Option<Holding>, IpamError> {
        let handle = self.store.read::<Handle>(&keys::handle(attachment))?;
        Ok(handle.map(|stored| stored.record.into()))
    }

    /// Once per boot, releases what this node's earlier boots left behind, and removes the
    /// endpoints: everything whose network namespace `is_alive` denies, or that names none. Returns
    /// the attachments released; from the second call in a boot on it is one read and returns none.
    pub fn reclaim_earlier_boots(
        &self,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Attachment>, IpamError> {
        if self.store.node(&self.node)?.is_some_and(|node| node.boot_id == self.boot_id) {
            return Ok(Vec::new());
        }
        let mut reclaimed = Vec::new();
        for key in self.store.keys_on(&self.node, keys::HANDLES)? {
            match self.reclaim(&key, is_alive) {
                Ok(attachment) => reclaimed.extend(attachment),
                // A damaged record stops whoever needs it, not every verb on the node.
                Err(IpamError::Store(error @ StoreError::Decode { .. })) => {
                    tracing::warn!(handle = key, %error, "not reclaimed");
                }
                Err(error) => return Err(error),
            }
        }
        self.store.update_node(&self.node, |node| node.boot_id.clone_from(&self.boot_id))?;
        Ok(reclaimed)
    }

    /// Releases one handle if it is left from an earlier boot of this node.
    fn reclaim(
        &self,
        key: &str,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Attachment>, IpamError> {
        let Some(Stored { record: handle, .. }) = self.store.read::<Handle>(key)? else {
            return Ok(None);
        };
        let is_stale = handle.node == self.node && handle.boot_id != self.boot_id;
        if !is_stale || handle.netns.as_deref().is_some_and(is_alive) {
            return Ok(None);
        }
        self.forget_endpoint(&handle)?;
        self.release_if(&handle.attachment, &|now| now.assignment == handle.assignment)?;
        Ok(Some(handle.attachment))
    }

    /// Removes the endpoint that was written in the handle's boot. As long as the handle is there,
    /// a reclaim that dies is repeated: so the endpoint goes first.
    fn forget_endpoint(&self, handle: &Handle) -> Result<(), IpamError> {
        let key = keys::endpoint(&handle.attachment);
        let revision = match self.store.read::<Endpoint>(&key) {
            Ok(Some(endpoint)) if endpoint.record.boot_id == handle.boot_id => {
                Some(endpoint.revision)
            }
            Ok(_) => return Ok(()),
            // What it names is gone, whatever that was.
            Err(StoreError::Decode { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let along = [Along::remove(keys::on(&handle.node, &key))];
        won(self.store.remove_along(&key, revision, &along))?;
        Ok(())
    }

    /// Releases the attachment for as long as its handle is one that `which` accepts.
    pub(super) fn release_if(
        &self,
        attachment: &Attachment,
        which: &dyn Fn(&Handle) -> bool,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let key = keys::handle(attachment);
        let mut given_back = BTreeSet::new();
        let mut patience = Patience::new();
        loop {
            let handle = self.store.read::<Handle>(&key)?;
            let Some(handle) = handle.filter(|handle| which(&handle.record)) else { break };
            if self.release_handle(&key, handle, &mut given_back)? {
                break;
            }
            patience.conflict()?;
        }
        Ok(given_back.into_iter().collect())
    }

    /// Gives back the slots of one assignment, then removes its handle; false if somebody else
    /// changed the handle meanwhile.
    fn release_handle(
        &self,
        key: &str,
        handle: Stored<Handle>,
        given_back: &mut BTreeSet<IpAddr>,
    ) -> Result<bool, IpamError> {
        let Stored { record: mut handle, mut revision } = handle;
        let complete = if handle.releasing { None } else { self.complete(&handle)? };
        if complete.is_none() && !handle.releasing {
            handle.releasing = true;
            match won(self.store.update(key, &handle, revision))? {
                Some(marked) => revision = marked,
                None => return Ok(false),
            }
        }
        let mut read = complete.unwrap_or_default().into_iter();
        for block in &handle.blocks {
            given_back.extend(self.give_back(block, &handle, read.next())?);
        }
        let along = [Along::remove(keys::on(&handle.node, key))];
        let removed = self.store.backend().write(key, Write::Delete(Some(revision)), &along);
        Ok(won(removed.map_err(StoreError::from))?.is_some())
    }

    /// The blocks that the handle names, if every one of them has a slot of it. Then its assignment is
    /// over, and nobody is about to take another slot.
    fn complete(&self, handle: &Handle) -> Result<Option<Vec<Stored<Block>>>, IpamError> {
        let mut blocks = Vec::with_capacity(handle.blocks.len());
        for block in &handle.blocks {
            match self.read_block(block)? {
                Some(stored) if !stored.record.held_by(handle).is_empty() => blocks.push(stored),
                _ => return Ok(None),
            }
        }
        Ok(Some(blocks))
    }

    /// Gives back what the assignment holds in one block.
    ///
    /// If that is nothing and the handle is marked, the block is written all the same: an
    /// assignment that read it before the mark then loses its compare-and-swap, reads it again,
    /// looks at the handle and stops.
    ///
    /// `read` is the block if it was read already; that of a marked handle has to be read after the
    /// mark.
    fn give_back(
        &self,
        block: &IpNetwork,
        handle: &Handle,
        mut read: Option<Stored<Block>>,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut patience = Patience::new();
        loop {
            let stored = match read.take() {
                Some(stored) => Some(stored),
                None => self.read_block(block)?,
            };
            let read = stored.as_ref().map(AsRead::from);
            let (before, claim) = match stored {
                Some(stored) => (stored.record, None),
                None => match self.store.read::<Affinity>(&keys::affinity(block))? {
                    Some(Stored { record: affinity, revision }) => {
                        (Block::new(*block, &affinity.node), Some(revision))
                    }
                    None => return Ok(Vec::new()),
                },
            };
            let held = before.held_by(handle);
            if held.is_empty() && !handle.releasing {
                return Ok(held);
            }
            let mut after = before.clone();
            after.give_back(&held, now_ms());
            if !held.is_empty() {
                self.before_give_back(&before, &after)?;
            }
            if self.rewrite_block(&after, read.as_ref(), claim)? {
                return Ok(held);
            }
            patience.conflict()?;
        }
    }
}
