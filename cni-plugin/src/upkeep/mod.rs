//! What a node needs done now and then, whoever does it: margay-agent in a loop, or an operator.
//!
//! | function | what it does |
//! | --- | --- |
//! | [`Upkeep::reclaim`] | takes away what belongs to this node's sandboxes that are gone |
//! | [`Upkeep::reattach`] | puts back filters, map entries, neighbours and routes that are missing, and gives every pod this build's programs, in place |
//! | [`Upkeep::remove_unused_pins`] | removes programs and maps of other builds and versions that nothing uses |
//! | [`Upkeep::drain_deletions`] | removes from the datastore what DELs had to put off |
//! | [`Upkeep::tend_blocks`] | lets other nodes have blocks of addresses that this one does not need, and know where the others are |
//! | [`Upkeep::unload`] | hands pods over to the host's stack and takes the programs away; by an operator alone |
//!
//! Each can be repeated at any time and killed at any moment, does what it can, and says in its
//! report what it did, by name, and what failed. Each looks at everything of this node once.
//!
//! Invariants: the runtime's word outranks upkeep's. What a verb is at work on is left alone (its
//! lock is tried, not waited for), nothing is taken by one look, and no network's configuration is
//! needed, so pods of every network are looked after, also of those that a runtime has forgotten.
//! All of it works in the namespaces of the calling thread, which must be the host's.

mod attach;
mod reclaim;
mod release;
mod unload;

use std::collections::BTreeSet;
use std::time::Duration;

use margay_datapath::{Datapath, LoadOptions, Removed};
use margay_datastore::{Attachment, Store, TendedBlocks};

pub use attach::Reattached;
pub use reclaim::Reclaimed;
pub use release::{Released, release, release_orphan};
pub use unload::Unloaded;

use crate::config::Paths;
use crate::dataplane::DataplaneError;
use crate::deletions;
use crate::error::Error;
use crate::hold::{Hold, Site};
use crate::ipam::{self, IpamError};
use crate::lock::Lock;
use crate::naming;
use crate::netlink::Netlink;

/// How long something must look as if it were of no use to anybody before it is taken away.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(60);

/// What could not be done, and why: the name of the attachment, address or path.
pub type Failures = Vec<(String, Error)>;

/// The upkeep of one node. Remembers between its calls what it has seen.
pub struct Upkeep {
    site: Site,
    load: LoadOptions,
    grace: Duration,
    suspects: reclaim::Suspects,
}

impl Upkeep {
    /// The upkeep of the node that the calling thread is on; within a tokio runtime.
    ///
    /// # Errors
    /// When the boot ID cannot be read, or no netlink socket can be had.
    pub fn new(store: Store, nodename: &str, paths: Paths, grace: Duration) -> Result<Self, Error> {
        let load = LoadOptions::new(paths.run_dir.join("load")).sized_as_before(&paths.bpffs_root);
        let (nodename, boot_id, netlink) =
            (nodename.to_owned(), ipam::boot_id()?, Netlink::open()?);
        let site = Site { paths, nodename, boot_id, store, netlink };
        Ok(Self { site, load, grace, suspects: reclaim::Suspects::default() })
    }

    /// The maps are made with so many entries, as the configuration has it, where they have to be made and there are
    /// none of an earlier ABI version to go by.
    #[must_use]
    pub fn sized(mut self, max_pods: u32, max_flows: u32) -> Self {
        let load = LoadOptions::new(self.site.paths.run_dir.join("load"));
        let load = LoadOptions { max_pods, max_flows, ..load };
        self.load = load.sized_as_before(&self.site.paths.bpffs_root);
        self
    }

    /// Removes from the datastore what DELs of this node put off while it was out of reach, and says of
    /// how many attachments that was.
    ///
    /// # Errors
    /// When one cannot be removed; the others are left for the next time.
    pub async fn drain_deletions(&self) -> Result<usize, Error> {
        deletions::drain(&self.site, None, usize::MAX).await
    }

    /// Gives up this node's blocks of addresses that hold nothing, but for one of each pool, and has other nodes know
    /// of the others what they should.
    ///
    /// # Errors
    /// When the datastore cannot be read or written.
    pub fn tend_blocks(&self) -> Result<TendedBlocks, Error> {
        let tended = self.site.allocator().tend_blocks().map_err(IpamError::from)?;
        let TendedBlocks { released, placed, .. } = &tended;
        if !released.is_empty() {
            tracing::info!(?released, "gave up empty blocks");
        }
        if !placed.is_empty() {
            tracing::warn!(?placed, "other nodes knew something else of blocks than they say");
        }
        Ok(tended)
    }

    /// Removes what other builds and earlier ABI versions have pinned and nothing uses any more, if
    /// it was published longer than the grace time ago and before this build became current.
    ///
    /// A verb of such a build that is just about to attach finds its pins gone and says so, or goes
    /// on with the programs that it has opened; the next one loads them again.
    ///
    /// # Errors
    /// When interfaces or pins cannot be looked at, or a pin cannot be removed.
    pub async fn remove_unused_pins(&self) -> Result<Removed, Error> {
        let root = &self.site.paths.bpffs_root;
        let Some(datapath) = Datapath::open(root).map_err(DataplaneError::Unavailable)? else {
            return Ok(Removed::new());
        };
        let links = self.site.netlink.links().await?;
        let mut in_use = BTreeSet::new();
        for link in links.iter().filter(|link| link.name.starts_with(naming::HOST_VETH_PREFIX)) {
            let programs = Datapath::programs_in_use(self.site.netlink.handle(), link.index).await;
            let interface = link.name.clone();
            in_use.extend(programs.map_err(|source| DataplaneError::Attach { interface, source })?);
        }
        let is_there = |name: &str| links.iter().any(|link| link.name == name);
        let removed = datapath.remove_unused(root, &self.load, &in_use, is_there, self.grace);
        let removed = removed.map_err(DataplaneError::Unavailable)?;
        if !removed.is_empty() {
            tracing::info!(?removed, "removed pins that nothing used");
        }
        Ok(removed)
    }

    /// The attachment with its lock, unless a verb is at work on it.
    fn hold(&self, attachment: &Attachment) -> Result<Option<Hold>, Error> {
        let lock = Lock::try_take(&self.site.paths.run_dir, &naming::host_veth(attachment))?;
        Ok(lock.map(|lock| Hold::new(self.site.clone(), attachment.clone(), lock)))
    }
}
