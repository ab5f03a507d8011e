//! The host's end, and what the programs know.

use margay_abi::HOST_VETH_MAC;
use margay_datapath::{AttachMode, Datapath, Program};
use margay_datastore::Endpoint;

use super::{Aspect, Defect, Defects, Promise};
use crate::config::Attach;
use crate::dataplane::{self, DataplaneError};
use crate::error::Error;
use crate::hold::{HostVeth, Site};
use crate::host::HostSide;
use crate::naming;
use crate::netlink::Netlink;
use crate::shaping;

/// Looks at the host's end: link, routes, neighbours, sysctls, bandwidth; programs and map entries. How programs are
/// attached and what they answer says the promise, or else the endpoint's record.
///
/// # Errors
/// When something cannot be looked at.
pub async fn inspect(
    site: &Site,
    endpoint: &Endpoint,
    promise: Option<Promise<'_>>,
) -> Result<Vec<Defect>, Error> {
    let mut defects = Defects::default();
    let link = match site.host_veth(&endpoint.attachment).await? {
        HostVeth::Ours(link) => link,
        HostVeth::Foreign(link) => {
            let alias = link.alias.unwrap_or_default();
            let text = format!("host interface {} belongs to {alias:?}", link.name);
            defects.push(Aspect::HostVeth, text);
            return Ok(defects.0);
        }
        HostVeth::Absent => {
            let name = naming::host_veth(&endpoint.attachment);
            defects.push(Aspect::HostVeth, format!("host interface {name} does not exist"));
            return Ok(defects.0);
        }
    };
    defects.compare_link(Aspect::HostVeth, "host", &link, HOST_VETH_MAC, endpoint.mtu);
    defects.expect(Aspect::HostVeth, link.alias.is_some(), || {
        format!("host interface {} has lost its alias", link.name)
    });
    let host = HostSide {
        name: link.name.clone(),
        ifindex: link.index,
        addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        pod_mac: endpoint.pod_mac,
    };
    look_at_routes(&mut defects, &site.netlink, &host).await?;
    let ifb = site.ifb(&endpoint.attachment).await?;
    let bandwidth = &endpoint.bandwidth;
    for text in shaping::inspect(&site.netlink, &host, ifb.as_ref(), bandwidth).await? {
        defects.push(Aspect::Bandwidth, text);
    }
    let uses_ebpf = endpoint.dataplane == dataplane::EBPF;
    defects.compare_sysctls(Aspect::HostSysctl, "host", host.sysctls(!uses_ebpf));
    if uses_ebpf {
        let wanted = Wanted::of(site, endpoint, &host, promise);
        look_at_programs(&mut defects, site, &host, &wanted).await?;
        look_at_entries(&mut defects, site, &host, endpoint, &wanted)?;
    }
    Ok(defects.0)
}

async fn look_at_routes(
    defects: &mut Defects,
    netlink: &Netlink,
    host: &HostSide,
) -> Result<(), Error> {
    for &address in &host.addresses {
        let found = host.has_route(netlink, address).await?;
        defects.expect(Aspect::HostRoute, found, || {
            format!("host lacks route {address} over {}", host.name)
        });
        let found = host.has_neighbour(netlink, address).await?;
        defects.expect(Aspect::Neighbour, found, || {
            format!("host lacks the permanent neighbour {address} on {}", host.name)
        });
    }
    Ok(())
}

/// What no record told of before there were such records.
struct Wanted {
    mode: AttachMode,
    answer_any_arp: bool,
}

impl Wanted {
    fn of(site: &Site, endpoint: &Endpoint, host: &HostSide, promise: Option<Promise<'_>>) -> Self {
        if let Some(Promise { conf, .. }) = promise {
            let (mode, answer_any_arp) = (dataplane::attach_mode(conf.attach), conf.answer_any_arp);
            return Self { mode, answer_any_arp };
        }
        let mode = match endpoint.attach.as_deref().and_then(Attach::named) {
            Some(attach) => dataplane::attach_mode(attach),
            None => Datapath::attach_mode_of(&site.paths.bpffs_root, &host.name),
        };
        Self { mode, answer_any_arp: endpoint.answer_any_arp }
    }
}

async fn look_at_programs(
    defects: &mut Defects,
    site: &Site,
    host: &HostSide,
    wanted: &Wanted,
) -> Result<(), Error> {
    let builds = Datapath::open_builds(&site.paths.bpffs_root);
    let builds = builds.map_err(DataplaneError::Unavailable)?;
    let Some(datapath) = builds.first() else {
        defects.push(Aspect::Pins, "no programs are pinned on this node".to_owned());
        return Ok(());
    };
    let attached = datapath.inspect(site.netlink.handle(), host.ifindex, wanted.mode).await;
    let attached = attached
        .map_err(|source| DataplaneError::Attach { interface: host.name.clone(), source })?;
    for program in Program::OF_POD {
        let found = attached.get(program);
        let is_ours = builds.iter().any(|build| build.program_ids().get(program) == found);
        let name = program.name();
        defects.expect(Aspect::Program, found.is_some(), || {
            format!("program {name} is not attached to {}: DEL and ADD attach it again", host.name)
        });
        defects.expect(Aspect::OtherProgram, found.is_none() || is_ours, || {
            format!("{} runs another {name} than any that is pinned on this node", host.name)
        });
    }
    Ok(())
}

fn look_at_entries(
    defects: &mut Defects,
    site: &Site,
    host: &HostSide,
    endpoint: &Endpoint,
    wanted: &Wanted,
) -> Result<(), Error> {
    // Without, nothing is pinned, and that has been said.
    let Some(pods) = dataplane::pods(&site.paths.bpffs_root)? else { return Ok(()) };
    let wanted = dataplane::map_entry(wanted.answer_any_arp, host, endpoint);
    for &address in &host.addresses {
        let found = pods.get(address);
        let found = found.map_err(|source| DataplaneError::Map { address, source })?;
        defects.expect(Aspect::MapEntry, found.is_some(), || {
            format!("map entry of {address} is missing")
        });
        defects.expect(Aspect::MapEntry, found.is_none_or(|entry| entry == wanted), || {
            format!("map entry of {address} is {found:?}, not {wanted:?}")
        });
    }
    Ok(())
}
