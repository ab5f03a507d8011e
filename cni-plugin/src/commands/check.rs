//! CHECK: looks at everything that an ADD made, and names all that is off.
//!
//! The endpoint says what there must be; the kernel, the maps and the IPAM say what there is.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay_abi::HOST_VETH_MAC;
use margay_datapath::{Datapath, Program};
use margay_datastore::{Endpoint, EndpointState};
use rscni_types::types::{CNIResult, Route};

use super::add;
use super::session::{self, Session};
use crate::config::{self, NetConf};
use crate::dataplane::{self, DataplaneError};
use crate::error::{Error, chain};
use crate::hold::HostVeth;
use crate::host::HostSide;
use crate::ipam::{IpamError, IpamResult};
use crate::nat::Nat;
use crate::netlink::{LinkInfo, Netlink, ROUTE_PROTOCOL};
use crate::netns::Netns;
use crate::pod::{self, PodError, PodSide};
use crate::protocol::{Call, Target};
use crate::result::mac_text;
use crate::{shaping, sysctl};

/// Verifies that an attachment is as its ADD left it.
pub(super) fn check(call: &Call, target: &Target) -> Result<(), Error> {
    let conf = session::configuration(call)?;
    let attachment = session::attachment(&conf, target)?;
    let netns = session::netns(target)?;
    let expected = config::prev_result(&call.config)?;
    session::run("CHECK", &attachment, async |phases| {
        phases.enter("open")?;
        let session = Session::open(call, &conf, attachment.clone())?;
        let endpoint = session.endpoint()?;
        let endpoint = endpoint.filter(|endpoint| endpoint.state == EndpointState::Ready);
        let endpoint =
            endpoint.ok_or_else(|| Error::NotAdded { attachment: attachment.clone() })?;
        let mut findings = Findings::default();
        if let Some(expected) = &expected {
            findings.compare_addresses(expected, &endpoint);
        }
        phases.enter("pod_side")?;
        let pod = pod_side(&conf, &endpoint, expected.as_ref());
        check_pod(&mut findings, &netns, &endpoint, &pod)?;
        phases.enter("host_side")?;
        check_host(&mut findings, &session, &endpoint).await?;
        if let Some(nat) = Nat::of(&conf) {
            phases.enter("nat")?;
            findings.0.extend(nat.findings().await?);
        }
        phases.enter("addresses")?;
        let addresses: Vec<IpAddr> = endpoint.ips.iter().map(|ip| ip.ip()).collect();
        match session.ipam().check(&attachment, &addresses) {
            Err(error @ IpamError::Mismatch { .. }) => findings.0.push(error.to_string()),
            outcome => outcome?,
        }
        findings.into_result()
    })
}

/// What is off, each in words that name the thing.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn expect(&mut self, is_right: bool, finding: impl FnOnce() -> String) {
        if !is_right {
            self.0.push(finding());
        }
    }

    /// A plugin further down the chain may have added addresses of its own.
    fn compare_addresses(&mut self, expected: &CNIResult, endpoint: &Endpoint) {
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            let found = expected.ips.iter().any(|expected| expected.address.addr() == ip);
            self.expect(found, || format!("address {ip} is not in prevResult"));
        }
    }

    fn compare_sysctls(&mut self, place: &str, wanted: Vec<(String, &'static str)>) {
        for (key, wanted) in wanted {
            match sysctl::get(&key) {
                Ok(value) => self.expect(value == wanted, || {
                    format!("{place} sysctl net/{key} is {value}, not {wanted}")
                }),
                Err(error) => self.0.push(chain(&error)),
            }
        }
    }

    fn compare_link(&mut self, place: &str, link: &LinkInfo, mac: [u8; 6], mtu: u32) {
        let name = &link.name;
        self.expect(link.up, || format!("{place} interface {name} is down"));
        self.expect(link.mac == mac, || {
            let (found, wanted) = (mac_text(link.mac), mac_text(mac));
            format!("{place} interface {name} has MAC address {found}, not {wanted}")
        });
        self.expect(link.mtu == mtu, || {
            format!("{place} interface {name} has MTU {}, not {mtu}", link.mtu)
        });
    }

    fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Mismatch { findings: self.0 }) }
    }
}

/// What the pod's end should be. Of the routes, those that `prevResult` still has: a plugin further
/// down the chain may have taken some away.
fn pod_side(conf: &NetConf, endpoint: &Endpoint, expected: Option<&CNIResult>) -> PodSide {
    let ifname = endpoint.attachment.ifname().to_owned();
    let mut default_route = conf.default_route_for(&ifname);
    let mut routes = add::routes(conf, &IpamResult::default(), default_route);
    if let Some(expected) = expected {
        let is_ours =
            |route: &&Route| route.gw == Some(PodSide::gateway(route.dst.addr().is_ipv4()));
        let ours = expected.routes.iter().filter(is_ours).map(|route| route.dst);
        routes = ours.filter_map(|dst| IpNetwork::new(dst.addr(), dst.prefix_len()).ok()).collect();
        // It is among those.
        default_route = false;
    }
    PodSide {
        ifname,
        addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        default_route,
        routes,
        allow_ip_forwarding: conf.ip_forwarding,
    }
}

fn check_pod(
    findings: &mut Findings,
    netns: &Netns,
    endpoint: &Endpoint,
    pod: &PodSide,
) -> Result<(), Error> {
    let ifname = &pod.ifname;
    let outcome = pod::in_pod(netns, async |netlink| {
        let link = pod::link(&netlink, ifname).await?;
        findings.compare_link("pod", &link, endpoint.pod_mac, endpoint.mtu);
        findings.expect(link.mac == endpoint.pod_mac, || {
            "nothing gets through with a MAC address that was not asked of margay, by \
             runtimeConfig.mac"
                .to_owned()
        });
        let addresses = netlink.addresses(link.index).await?;
        for &ip in &pod.addresses {
            let found = addresses.iter().any(|info| info.address == ip);
            findings.expect(found, || format!("pod interface {ifname} lacks address {ip}"));
        }
        let routes = netlink.routes(link.index).await?;
        for wanted in pod.routes(link.index) {
            let found = routes.iter().any(|route| {
                route.prefix_length == wanted.destination.prefix()
                    && route.gateway == wanted.gateway
                    && (wanted.destination.prefix() == 0
                        || route.destination == Some(wanted.destination.ip()))
            });
            findings.expect(found, || format!("pod lacks route {}", wanted.destination));
        }
        findings.compare_sysctls("pod", pod.forwarding_sysctls());
        Ok(())
    });
    match outcome {
        Err(error @ PodError::NoInterface { .. }) => findings.0.push(error.to_string()),
        outcome => outcome?,
    }
    Ok(())
}

async fn check_host(
    findings: &mut Findings,
    session: &Session<'_>,
    endpoint: &Endpoint,
) -> Result<(), Error> {
    let link = match session.host_veth().await? {
        HostVeth::Ours(link) => link,
        HostVeth::Foreign(link) => {
            let alias = link.alias.unwrap_or_default();
            findings.0.push(format!("host interface {} belongs to {alias:?}", link.name));
            return Ok(());
        }
        HostVeth::Absent => {
            findings.0.push(format!("host interface {} does not exist", session.host_veth));
            return Ok(());
        }
    };
    findings.compare_link("host", &link, HOST_VETH_MAC, endpoint.mtu);
    findings.expect(link.alias.is_some(), || {
        format!("host interface {} has lost its alias", link.name)
    });
    let host = HostSide {
        name: link.name.clone(),
        ifindex: link.index,
        addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        pod_mac: endpoint.pod_mac,
    };
    check_routes(findings, &session.site.netlink, &host).await?;
    let ifb = session.ifb().await?;
    let bandwidth = &endpoint.bandwidth;
    findings
        .0
        .extend(shaping::inspect(&session.site.netlink, &host, ifb.as_ref(), bandwidth).await?);
    let uses_ebpf = endpoint.dataplane == dataplane::EBPF;
    findings.compare_sysctls("host", host.sysctls(!uses_ebpf));
    if uses_ebpf {
        check_dataplane(findings, session, &host, endpoint).await?;
    }
    Ok(())
}

async fn check_routes(
    findings: &mut Findings,
    netlink: &Netlink,
    host: &HostSide,
) -> Result<(), Error> {
    for &address in &host.addresses {
        let route = netlink.route_to(address).await?;
        let found = route.is_some_and(|route| {
            route.ifindex == Some(host.ifindex) && route.protocol == ROUTE_PROTOCOL
        });
        findings.expect(found, || format!("host lacks route {address} over {}", host.name));
        let neighbour = netlink.neighbour(host.ifindex, address).await?;
        let found = neighbour
            .is_some_and(|neighbour| neighbour.permanent && neighbour.mac == Some(host.pod_mac));
        findings.expect(found, || {
            format!("host lacks the permanent neighbour {address} on {}", host.name)
        });
    }
    Ok(())
}

async fn check_dataplane(
    findings: &mut Findings,
    session: &Session<'_>,
    host: &HostSide,
    endpoint: &Endpoint,
) -> Result<(), Error> {
    let conf = session.conf;
    let builds = Datapath::open_builds(&conf.paths.bpffs_root);
    let builds = builds.map_err(DataplaneError::Unavailable)?;
    let Some(datapath) = builds.first() else {
        findings.0.push("no programs are pinned on this node".to_owned());
        return Ok(());
    };
    let mode = dataplane::attach_mode(conf.attach);
    let attached = datapath.inspect(session.site.netlink.handle(), host.ifindex, mode).await;
    let attached = attached
        .map_err(|source| DataplaneError::Attach { interface: host.name.clone(), source })?;
    for program in Program::OF_POD {
        let found = attached.get(program);
        let is_ours = builds.iter().any(|build| build.program_ids().get(program) == found);
        let name = program.name();
        findings.expect(found.is_some(), || {
            format!("program {name} is not attached to {}: DEL and ADD attach it again", host.name)
        });
        findings.expect(found.is_none() || is_ours, || {
            format!("{} runs another {name} than any that is pinned on this node", host.name)
        });
    }
    let wanted = dataplane::map_entry(conf.answer_any_arp, host, endpoint);
    for &address in &host.addresses {
        let found = datapath.pods().get(address);
        let found = found.map_err(|source| DataplaneError::Map { address, source })?;
        findings.expect(found.is_some(), || format!("map entry of {address} is missing"));
        findings.expect(found.is_none_or(|entry| entry == wanted), || {
            format!("map entry of {address} is {found:?}, not {wanted:?}")
        });
    }
    Ok(())
}
