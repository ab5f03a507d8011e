//! Hands this node's pods over to the host's stack, and takes the programs away.
//!
//! A pod whose programs are gone has nobody who answers its ARP for the gateway: so the host's stack is told to before
//! (`proxy_arp`, as for pods of `"dataplane": "linux"`), and the pod's record says `linux` from then on. The order for a
//! pod: sysctls, record, filters, map entry. Whenever this is killed, the pod has who answers, and a repetition, or its
//! DEL, finds what is left. Entries go behind filters, since a filter without its entry drops all that the pod
//! sends.

use std::net::IpAddr;

use margay_datapath::{Datapath, Removed};
use margay_datastore::{Attachment, Endpoint, EndpointState};

use super::{Failures, Upkeep};
use crate::dataplane::{self, DataplaneError};
use crate::error::{Error, chain};
use crate::hold::{Hold, HostVeth};
use crate::host::HostSide;
use crate::naming;
use crate::netlink::LinkInfo;

/// What a call of [`Upkeep::unload`] did.
#[derive(Debug, Default)]
pub struct Unloaded {
    /// Pods that the host's stack carries from here on.
    pub handed_over: Vec<Attachment>,
    /// Pods that a verb is at work on, which keep what they have.
    pub busy: Vec<Attachment>,
    /// Other interfaces that had programs of a node among others.
    pub interfaces: Vec<String>,
    /// Pins that were removed. None as long as a pod has programs.
    pub pins: Removed,
    /// What could not be done.
    pub failed: Failures,
}

impl Unloaded {
    fn names(&self, attachment: &Attachment) -> bool {
        let mut named = self.handed_over.iter().chain(&self.busy);
        named.any(|other| other == attachment)
            || self.failed.iter().any(|(name, _)| *name == attachment.to_string())
    }
}

impl Upkeep {
    /// Hands every pod of this node over to the host's stack, and removes programs, links and pins. Pods that come
    /// after it get what their network's configuration says.
    ///
    /// # Errors
    /// When the datastore, or the kernel's links, cannot be read. What fails for one pod is in the
    /// report.
    pub async fn unload(&self) -> Result<Unloaded, Error> {
        let mut report = Unloaded::default();
        let endpoints = self.site.store.endpoints_on(&self.site.nodename)?;
        for endpoint in endpoints.into_iter().filter(|it| it.dataplane == dataplane::EBPF) {
            self.hand_over(endpoint.attachment, &mut report).await?;
        }
        // An ADD that came to its end meanwhile, or is about to, is known by its interface.
        let links = self.site.netlink.links().await?;
        let aliases = links.iter().filter_map(|link| link.alias.as_deref());
        for attachment in aliases.filter_map(naming::attachment_of_alias) {
            if !report.names(&attachment) {
                self.hand_over(attachment, &mut report).await?;
            }
        }
        if report.busy.is_empty() && report.failed.is_empty() {
            self.remove_what_is_the_nodes(&links, &mut report).await?;
        }
        Ok(report)
    }

    async fn hand_over(&self, attachment: Attachment, report: &mut Unloaded) -> Result<(), Error> {
        let Some(hold) = self.hold(&attachment)? else {
            report.busy.push(attachment);
            return Ok(());
        };
        match hand_over(&hold).await {
            Ok(true) => report.handed_over.push(attachment),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%attachment, error = chain(&error), "not handed over");
                report.failed.push((attachment.to_string(), error));
            }
        }
        Ok(())
    }

    /// Of these links, which were there before every pod was looked at.
    async fn remove_what_is_the_nodes(
        &self,
        links: &[LinkInfo],
        report: &mut Unloaded,
    ) -> Result<(), Error> {
        let root = &self.site.paths.bpffs_root;
        for link in links {
            let handle = self.site.netlink.handle();
            let detached = Datapath::detach_all(root, handle, link.index, &link.name).await;
            let interface = link.name.clone();
            if detached.map_err(|source| DataplaneError::Attach { interface, source })? {
                report.interfaces.push(link.name.clone());
            }
        }
        let removed = Datapath::remove_all_pins(root, &self.load);
        report.pins = removed.map_err(DataplaneError::Unavailable)?;
        Ok(())
    }
}

/// `false` where there is nothing to hand over: no interface, an ADD that was cut short, or a pod that the
/// stack carries.
async fn hand_over(hold: &Hold) -> Result<bool, Error> {
    let is_ours = |endpoint: &Endpoint| {
        endpoint.state == EndpointState::Ready && endpoint.dataplane == dataplane::EBPF
    };
    let endpoint = hold.endpoint()?.filter(is_ours);
    let (Some(mut endpoint), HostVeth::Ours(link)) = (endpoint, hold.host_veth().await?) else {
        return Ok(false);
    };
    let addresses: Vec<IpAddr> = endpoint.ips.iter().map(|ip| ip.ip()).collect();
    let (name, ifindex, pod_mac) = (link.name, link.index, endpoint.pod_mac);
    let host = HostSide { name, ifindex, addresses, pod_mac };
    host.set_sysctls(true)?;
    dataplane::LINUX.clone_into(&mut endpoint.dataplane);
    (endpoint.attach, endpoint.answer_any_arp) = (None, false);
    hold.site.store.put_endpoint(&endpoint)?;
    let root = &hold.site.paths.bpffs_root;
    let handle = hold.site.netlink.handle();
    let detached = Datapath::detach_all(root, handle, ifindex, &host.name).await;
    let interface = host.name.clone();
    detached.map_err(|source| DataplaneError::Attach { interface, source })?;
    if let Some(pods) = dataplane::pods(root)? {
        for &address in &host.addresses {
            let failed = |source| DataplaneError::Map { address, source };
            if pods.get(address).map_err(failed)?.is_some_and(|entry| entry.ifindex == ifindex) {
                pods.remove(address).map_err(failed)?;
            }
        }
    }
    tracing::info!(attachment = %hold.attachment, "handed over to the host's stack");
    Ok(true)
}
