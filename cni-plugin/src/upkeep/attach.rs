//! Puts back what carries a pod's packets, and gives every pod this build's programs.
//!
//! What there should be, the endpoint's record says. A filter is attached at margay's own place
//! (priority and handle, or pinned link), so that those of others stay; one that runs other programs
//! of margay's gets this build's in the same place, by one exchange, so that no packet passes without.
//!
//! Which programs a pod is to have: those of this build, unless it has those of a build that became
//! current later ([`Upkeep::make_current`]), or of a later ABI version. From an earlier ABI version a pod is taken over
//! alone, whatever the others have: first it gets its entry in this version's maps, then this
//! version's filters, and last the earlier version forgets it. So its own packets are never taken for
//! stolen ones. Pods of the two versions do not know each other as local ones, and speak by the
//! host's stack; a flow that was direct goes on there, as with a lost table of flows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use margay_abi::ABI_VERSION;
use margay_datapath::{
    AttachMode, AttachedPrograms, Datapath, LoadError, PinnedBuild, Program, ProgramId,
};
use margay_datastore::{Attachment, Endpoint, EndpointState};
use rustix::io::Errno;

use super::{Failures, Upkeep};
use crate::config::Attach;
use crate::dataplane::{self, DataplaneError};
use crate::error::{Error, chain};
use crate::hold::{Hold, HostVeth};
use crate::host::HostSide;
use crate::netlink::{LinkInfo, NewRoute};

/// What a call of [`Upkeep::reattach`] did.
#[derive(Debug, Default)]
pub struct Reattached {
    /// Pods that were looked at.
    pub pods: usize,
    /// Pods that lacked a filter.
    pub attached: Vec<Attachment>,
    /// Pods whose filters ran programs of another build.
    pub replaced: Vec<Attachment>,
    /// Addresses that lacked a map entry.
    pub map_entries: Vec<IpAddr>,
    /// Addresses that lacked a neighbour or a route.
    pub routes: Vec<IpAddr>,
    /// What could not be done.
    pub failed: Failures,
}

/// What is wrong with a pod's filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filters {
    AsTheyShouldBe,
    /// Of a later build or version, which knows better.
    Later,
    Missing,
    Other,
}

impl Upkeep {
    /// Makes this build the one that all pods are to have. For an agent that starts: whoever starts
    /// it wants its build, be it a later or an earlier one than before.
    ///
    /// # Errors
    /// When this build is not loaded yet and cannot be, or its pins cannot be touched.
    pub fn make_current(&self) -> Result<(), Error> {
        let made = self.datapath()?.make_current();
        made.map_err(|error: LoadError| DataplaneError::Unavailable(error.into()).into())
    }

    /// Puts back what is missing of this node's pods, and gives them this build's programs in place
    /// of an earlier one's.
    ///
    /// # Errors
    /// When the datastore cannot be read, or this build's programs cannot be loaded though a pod
    /// needs them. What fails for one pod is in the report.
    pub async fn reattach(&self) -> Result<Reattached, Error> {
        let mut report = Reattached::default();
        let mut programs = None;
        for attachment in self.site.store.attachments_on(&self.site.nodename)? {
            let pod = self.pod(&attachment).await;
            if let Ok(Some(pod)) = &pod
                && programs.is_none()
                && pod.endpoint.dataplane == dataplane::EBPF
            {
                programs = Some(Programs::open(self)?);
            }
            let outcome = match pod {
                Ok(Some(pod)) => mend(pod, programs.as_ref(), &mut report).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(%attachment, error = chain(&error), "not put right");
                report.failed.push((attachment.to_string(), error));
            }
        }
        Ok(report)
    }

    fn datapath(&self) -> Result<Datapath, Error> {
        let opened = Datapath::open_or_load(&self.site.paths.bpffs_root, &self.load);
        Ok(opened.map_err(DataplaneError::Unavailable)?)
    }

    /// A pod of this node and boot that is ready and has its host veth, unless a verb is at work on it.
    async fn pod(&self, attachment: &Attachment) -> Result<Option<Pod>, Error> {
        let Some(hold) = self.hold(attachment)? else { return Ok(None) };
        let is_ours = |endpoint: &Endpoint| {
            endpoint.state == EndpointState::Ready
                && endpoint.node == self.site.nodename
                && endpoint.boot_id == self.site.boot_id
        };
        let endpoint = hold.endpoint()?.filter(is_ours);
        let (Some(endpoint), HostVeth::Ours(link)) = (endpoint, hold.host_veth().await?) else {
            return Ok(None);
        };
        Ok(Some(Pod { hold, endpoint, link }))
    }
}

/// A pod, under its lock.
struct Pod {
    hold: Hold,
    endpoint: Endpoint,
    link: LinkInfo,
}

/// A pod whose addresses are on their way back is left to the DEL that takes them.
async fn mend(
    Pod { hold, endpoint, link }: Pod,
    programs: Option<&Programs>,
    report: &mut Reattached,
) -> Result<(), Error> {
    let addresses: Vec<IpAddr> = endpoint.ips.iter().map(|ip| ip.ip()).collect();
    let held = hold.assigned()?;
    if hold.is_known_to_ipam()? && !addresses.iter().all(|address| held.contains(address)) {
        return Ok(());
    }
    let (name, ifindex, pod_mac) = (link.name, link.index, endpoint.pod_mac);
    let host = HostSide { name, ifindex, addresses, pod_mac };
    report.pods += 1;
    if let Some(programs) = programs.filter(|_| endpoint.dataplane == dataplane::EBPF) {
        programs.mend(&hold, &host, &endpoint, report).await?;
    }
    mend_routes(&hold, &host, report).await
}

/// This build's programs, open, and what is known of all others.
struct Programs {
    datapath: Datapath,
    builds: BTreeMap<ProgramId, PinnedBuild>,
}

impl Programs {
    fn open(upkeep: &Upkeep) -> Result<Self, Error> {
        let datapath = upkeep.datapath()?;
        let builds = Datapath::pinned_builds(&upkeep.site.paths.bpffs_root);
        let mut of_program = BTreeMap::new();
        for build in builds.map_err(DataplaneError::Unavailable)? {
            of_program.extend(build.programs.iter().map(|program| (*program, build.clone())));
        }
        Ok(Self { datapath, builds: of_program })
    }

    /// Entries before filters: a filter without an entry drops all that the pod sends.
    async fn mend(
        &self,
        hold: &Hold,
        host: &HostSide,
        endpoint: &Endpoint,
        report: &mut Reattached,
    ) -> Result<(), Error> {
        let root = &hold.site.paths.bpffs_root;
        let failed = |source| DataplaneError::Attach { interface: host.name.clone(), source };
        let handle = hold.site.netlink.handle();
        let in_use = Datapath::programs_in_use(handle, host.ifindex).await.map_err(failed)?;
        if in_use.iter().any(|id| self.is_of_later_version(*id)) {
            return Ok(());
        }
        Datapath::adopt_links(root, &host.name)
            .map_err(|error| DataplaneError::Unavailable(error.into()))?;
        let mode = match endpoint.attach.as_deref().and_then(Attach::named) {
            Some(attach) => dataplane::attach_mode(attach),
            None => Datapath::attach_mode_of(root, &host.name),
        };
        self.mend_entries(hold, host, endpoint, report).await?;
        let filters = self.look_at_filters(hold, host, mode).await?;
        if matches!(filters, Filters::Missing | Filters::Other) {
            self.datapath.attach(handle, host.ifindex, mode).await.map_err(failed)?;
            let attachment = &hold.attachment;
            tracing::info!(%attachment, ?filters, build = self.datapath.build(), "attached");
            let done = match filters {
                Filters::Missing => &mut report.attached,
                _ => &mut report.replaced,
            };
            done.push(attachment.clone());
        }
        for &address in &host.addresses {
            let failed = |source| DataplaneError::Map { address, source };
            for entry in Datapath::earlier_entries(root, address).map_err(failed)? {
                if entry.ifindex == host.ifindex {
                    entry.remove().map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    async fn look_at_filters(
        &self,
        hold: &Hold,
        host: &HostSide,
        mode: AttachMode,
    ) -> Result<Filters, Error> {
        let found = self.datapath.inspect(hold.site.netlink.handle(), host.ifindex, mode).await;
        let found = found
            .map_err(|source| DataplaneError::Attach { interface: host.name.clone(), source })?;
        let wanted = self.datapath.program_ids();
        Ok(self.judge(found, wanted))
    }

    fn judge(&self, found: AttachedPrograms, wanted: AttachedPrograms) -> Filters {
        let ids = Program::OF_POD.map(|program| found.get(program));
        if ids.contains(&None) {
            return Filters::Missing;
        }
        let build_of = |id: &Option<ProgramId>| id.and_then(|id| self.builds.get(&id));
        let ours = wanted.from_pod.and_then(|id| self.builds.get(&id));
        let is_later = |build: &PinnedBuild| {
            build.abi_version == ABI_VERSION
                && ours.is_some_and(|ours| build.current_since > ours.current_since)
        };
        match found == wanted {
            true => Filters::AsTheyShouldBe,
            false if ids.iter().filter_map(build_of).any(is_later) => Filters::Later,
            false => Filters::Other,
        }
    }

    fn is_of_later_version(&self, id: ProgramId) -> bool {
        self.builds.get(&id).is_some_and(|build| build.abi_version > ABI_VERSION)
    }

    /// An entry of another pod's living interface stays, whatever the records say.
    async fn mend_entries(
        &self,
        hold: &Hold,
        host: &HostSide,
        endpoint: &Endpoint,
        report: &mut Reattached,
    ) -> Result<(), Error> {
        let wanted = dataplane::map_entry(endpoint.answer_any_arp, host, endpoint);
        for &address in &host.addresses {
            let failed = |source| DataplaneError::Map { address, source };
            let found = self.datapath.pods().get(address).map_err(failed)?;
            let owner = match found {
                Some(entry) => hold.site.netlink.link_by_index(entry.ifindex).await?,
                None => None,
            };
            if owner.is_none() {
                self.datapath.pods().insert(address, &wanted).map_err(failed)?;
                tracing::info!(attachment = %hold.attachment, %address, "wrote the map entry");
                report.map_entries.push(address);
            }
        }
        Ok(())
    }
}

/// Neighbours and routes as ADD makes them. A route of somebody else's is left, and is an error.
async fn mend_routes(hold: &Hold, host: &HostSide, report: &mut Reattached) -> Result<(), Error> {
    let netlink = &hold.site.netlink;
    for &address in &host.addresses {
        let has_neighbour = host.has_neighbour(netlink, address).await?;
        if !has_neighbour {
            netlink.set_permanent_neighbour(host.ifindex, address, host.pod_mac).await?;
        }
        let has_route = host.has_route(netlink, address).await?;
        if !has_route {
            match netlink.add_route(&NewRoute::on_link(address, host.ifindex)).await {
                Err(error) if error.is(Errno::EXIST) => {
                    return Err(host.route_taken(netlink, address).await.into());
                }
                outcome => outcome?,
            }
        }
        if !has_neighbour || !has_route {
            tracing::info!(attachment = %hold.attachment, %address, "made neighbour and route");
            report.routes.push(address);
        }
    }
    Ok(())
}
