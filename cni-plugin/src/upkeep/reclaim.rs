//! Takes away what belongs to sandboxes that are gone.
//!
//! A sandbox is gone when its network namespace is: the path that the ADD was given leads to no
//! namespace, to the host's own or to another than it did, **and** the host veth is gone as well. A
//! veth pair lives as long as the namespaces of both of its ends. So one that is there shows that the
//! namespace lives on without its path, as long as some process is in it or holds it open, and that
//! is left to the runtime.
//!
//! Invariant: something is taken when two looks, the grace time apart at least, find the same
//! assignment of the same endpoint without its sandbox, and a third one under the attachment's lock
//! does. It goes by the one teardown.
//!
//! Where another plugin gave the addresses, only it can take them back, and it must be told by the
//! network's configuration, which nobody here has. There upkeep takes what is the kernel's, and leaves
//! the endpoint's record: by that the runtime's DEL or GC, or an ADD of the same attachment, finds
//! what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use margay_abi::PodInfo;
use margay_datastore::{Attachment, Endpoint, Holding};

use super::{Failures, Upkeep};
use crate::commands::teardown::{dismantle, teardown};
use crate::dataplane::{self, DataplaneError};
use crate::error::{Error, chain};
use crate::hold::{HostVeth, Site};
use crate::ipam::{self, IpamError};
use crate::lock::Lock;
use crate::naming;

/// What a call of [`Upkeep::reclaim`] did.
#[derive(Debug, Default)]
pub struct Reclaimed {
    /// Taken away whole.
    pub reclaimed: Vec<Attachment>,
    /// Taken away but for the record, since another IPAM plugin has given the addresses: a DEL or GC
    /// of the network will see to it. Named again by every call until then.
    pub left_to_ipam: Vec<Attachment>,
    /// Seen without their sandbox, and waiting for another look.
    pub suspects: usize,
    /// Map entries of interfaces that are gone and that belonged to nothing else.
    pub map_entries: Vec<IpAddr>,
    /// What could not be done.
    pub failed: Failures,
}

/// What was seen without its sandbox, as it was, and when first.
#[derive(Default)]
pub(super) struct Suspects {
    attachments: BTreeMap<Attachment, (Sighting, Instant)>,
    entries: BTreeMap<IpAddr, (PodInfo, Instant)>,
}

/// All that is known of an attachment. Two sightings of one assignment are equal.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sighting {
    endpoint: Option<Endpoint>,
    holding: Option<Holding>,
}

impl Sighting {
    /// Whether the sandbox's namespace is where the ADD found it; `None` if nothing says where.
    fn has_netns(&self, boot_id: &str) -> Option<bool> {
        if let Some(endpoint) = &self.endpoint {
            let found = ipam::netns_inode(&endpoint.netns);
            // Inodes are told apart within a boot.
            let expected = endpoint.netns_inode.filter(|_| endpoint.boot_id == boot_id);
            return Some(found.is_some() && (expected.is_none() || found == expected));
        }
        Some(ipam::is_netns_alive(self.holding.as_ref()?.netns.as_deref()?))
    }

    /// What nothing is recorded of is without a sandbox as well: an ADD records before it makes.
    fn is_without_sandbox(&self, boot_id: &str) -> bool {
        match self.has_netns(boot_id) {
            Some(is_there) => !is_there,
            None => *self == Self::default(),
        }
    }
}

impl Upkeep {
    /// Takes away what belongs to sandboxes of this node that are gone, of whatever network:
    /// endpoints, addresses, map entries, links, pins of TCX links; and lock files of verbs that
    /// were killed.
    ///
    /// # Errors
    /// When the datastore or the kernel's links cannot be listed. What fails for one attachment is in
    /// the report.
    pub async fn reclaim(&mut self) -> Result<Reclaimed, Error> {
        ipam::reclaim_earlier_boots(&self.site.store, &self.site.nodename, &self.site.boot_id)?;
        let mut report = Reclaimed::default();
        let seen = self.survey().await?;
        let due = self.look(seen);
        report.suspects = self.suspects.attachments.len() - due.len();
        for (attachment, sighting) in due {
            if let Err(error) = self.take(&attachment, &sighting, &mut report).await {
                tracing::warn!(%attachment, error = chain(&error), "not reclaimed");
                report.failed.push((attachment.to_string(), error));
            }
        }
        self.take_map_entries(&mut report).await?;
        Lock::sweep(&self.site.paths.run_dir)?;
        Ok(report)
    }

    /// Everything of this node whose sandbox is gone. Reads the records of nothing that has its host veth.
    async fn survey(&self) -> Result<BTreeMap<Attachment, Sighting>, Error> {
        let recorded = self.site.store.attachments_on(&self.site.nodename)?;
        // After the records: a link that was made meanwhile is one of an attachment that lives.
        let links = self.site.netlink.links().await?;
        let aliases = links.iter().filter_map(|link| link.alias.as_deref());
        let linked: BTreeSet<Attachment> =
            aliases.filter_map(naming::attachment_of_alias).collect();
        let names: BTreeSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let mut seen = BTreeMap::new();
        for attachment in recorded.union(&linked) {
            if names.contains(naming::host_veth(attachment).as_str()) {
                continue;
            }
            let sighting = match look_at(&self.site, attachment) {
                // Whoever needs the record will be told.
                Err(error) if !error.is_out_of_reach() => {
                    tracing::warn!(%attachment, error = chain(&error), "left as it is");
                    continue;
                }
                sighting => sighting?,
            };
            // Of a record that went since it was listed, nothing is left.
            let is_there = sighting != Sighting::default() || linked.contains(attachment);
            if is_there && sighting.is_without_sandbox(&self.site.boot_id) {
                seen.insert(attachment.clone(), sighting);
            }
        }
        Ok(seen)
    }

    /// Notes what was seen, and returns what was seen alike before the grace time.
    fn look(&mut self, seen: BTreeMap<Attachment, Sighting>) -> BTreeMap<Attachment, Sighting> {
        let now = Instant::now();
        let mut due = BTreeMap::new();
        let mut suspects = BTreeMap::new();
        for (attachment, sighting) in seen {
            let before = self.suspects.attachments.remove(&attachment);
            let before = before.filter(|(before, _)| *before == sighting);
            let since = before.as_ref().map_or(now, |(_, since)| *since);
            if before.is_some() && now.duration_since(since) >= self.grace {
                due.insert(attachment.clone(), sighting.clone());
            }
            suspects.insert(attachment, (sighting, since));
        }
        self.suspects.attachments = suspects;
        due
    }

    /// The third look, and what follows from it.
    async fn take(
        &self,
        attachment: &Attachment,
        sighting: &Sighting,
        report: &mut Reclaimed,
    ) -> Result<(), Error> {
        let Some(hold) = self.hold(attachment)? else { return Ok(()) };
        if !matches!(hold.host_veth().await?, HostVeth::Absent | HostVeth::Foreign(_)) {
            return Ok(());
        }
        let again = look_at(&self.site, attachment)?;
        if again != *sighting || !again.is_without_sandbox(&self.site.boot_id) {
            return Ok(());
        }
        if again.endpoint.is_some() && again.holding.is_none() {
            dismantle(&hold).await?;
            report.left_to_ipam.push(attachment.clone());
            return Ok(());
        }
        let release = |is_reachable| if is_reachable { hold.release() } else { Ok(()) };
        teardown(&hold, None, release).await?.or_out_of_reach()?;
        tracing::info!(%attachment, "reclaimed: its sandbox is gone");
        report.reclaimed.push(attachment.clone());
        Ok(())
    }

    /// Removes map entries of interfaces that are gone, seen twice like everything. Those of
    /// attachments went with them.
    async fn take_map_entries(&mut self, report: &mut Reclaimed) -> Result<(), Error> {
        let Some(pods) = dataplane::pods(&self.site.paths.bpffs_root)? else { return Ok(()) };
        let mut orphans = pods.entries().map_err(DataplaneError::Maps)?;
        // After the entries: an ADD makes the link first.
        let links = self.site.netlink.links().await?;
        let alive: BTreeSet<u32> = links.into_iter().map(|link| link.index).collect();
        orphans.retain(|_, entry| !alive.contains(&entry.ifindex));
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.suspects.entries);
        for (address, entry) in orphans {
            let known = before.remove(&address).filter(|(known, _)| *known == entry);
            let since = known.map_or(now, |(_, since)| since);
            if known.is_none() || now.duration_since(since) < self.grace {
                self.suspects.entries.insert(address, (entry, since));
                continue;
            }
            match dataplane::remove_entry(&pods, address, &entry) {
                Ok(()) => report.map_entries.push(address),
                Err(error) => report.failed.push((address.to_string(), error.into())),
            }
        }
        Ok(())
    }
}

/// What the records of this node say of an attachment.
fn look_at(site: &Site, attachment: &Attachment) -> Result<Sighting, Error> {
    let endpoint = site.store.endpoint(attachment)?.filter(|found| found.node == site.nodename);
    let holding = site.allocator().holding(attachment).map_err(IpamError::from)?;
    let holding = holding.filter(|found| found.node == site.nodename);
    Ok(Sighting { endpoint, holding })
}
