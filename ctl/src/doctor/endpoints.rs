//! Every endpoint by what CHECK looks at, and who else is at the hooks of its interface.
//!
//! No lock is taken: a verb may be at work. So what one look finds is believed if a second one, some time later, finds
//! it too, and the endpoint's record is the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use margay::hold::Site;
use margay::inspection::{self, Aspect, Promise};
use margay::ipam;
use margay::nat::Nat;
use margay::netns::Netns;
use margay_abi::ABI_VERSION;
use margay_datapath::{AttachedFilter, Datapath, PinnedBuild, Program};
use margay_datastore::{Endpoint, EndpointState};

use super::PAUSE;
use super::catalogue::{
    ENDPOINT_ADDRESS_NOT_HELD, ENDPOINT_BANDWIDTH, ENDPOINT_HOST_ROUTE, ENDPOINT_HOST_VETH,
    ENDPOINT_MAP_ENTRY, ENDPOINT_NEIGHBOUR, ENDPOINT_OLD_BUILD, ENDPOINT_OTHER_PROGRAM,
    ENDPOINT_PENDING, ENDPOINT_POD_ADDRESS, ENDPOINT_POD_INTERFACE, ENDPOINT_POD_ROUTE,
    ENDPOINT_POD_SYSCTL, ENDPOINT_PROGRAM, ENDPOINT_SANDBOX_GONE, ENDPOINT_SYSCTL, FILTER_IN_FRONT,
    Kind, NAT_RULES, NOT_LOOKED_AT,
};
use super::dataplane;
use super::finding::Findings;
use super::picture::Picture;
use crate::endpoints::name;

/// How long an ADD can take at most, whatever it waits for.
const LONGEST_ADD: Duration = Duration::from_secs(120);

pub(super) async fn look(picture: &Picture<'_>, findings: &mut Findings) {
    let Some(site) = &picture.site else { return };
    look_at_states(picture, findings);
    let mut first = Findings::default();
    for endpoint in picture.of_this_boot() {
        look_at(picture, site, endpoint, &mut first).await;
    }
    if !first.0.is_empty() {
        tokio::time::sleep(PAUSE).await;
        let mut second = Findings::default();
        for endpoint in picture.of_this_boot() {
            // Whoever has it in hand has changed or removed the record by then.
            let is_same = matches!(site.store.endpoint(&endpoint.attachment), Ok(Some(now)) if now == *endpoint);
            if is_same {
                look_at(picture, site, endpoint, &mut second).await;
            }
        }
        findings.0.extend(second.0.into_iter().filter(|finding| first.0.contains(finding)));
    }
    look_at_nat(picture, findings).await;
}

fn look_at_states(picture: &Picture<'_>, findings: &mut Findings) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for endpoint in &picture.endpoints {
        let named = named(endpoint);
        let age = now.saturating_sub(Duration::from_secs(endpoint.created_at));
        if endpoint.state == EndpointState::Pending {
            if age > LONGEST_ADD {
                let text = format!("{named} has been in the making for {} s", age.as_secs());
                findings.add(&ENDPOINT_PENDING, text);
            }
        } else if !has_sandbox(picture, endpoint) {
            let text = format!("{named} has no sandbox any more: {}", endpoint.netns);
            findings.add(&ENDPOINT_SANDBOX_GONE, text);
        }
    }
}

/// A veth pair lives as long as the sandbox, whatever became of its path.
fn has_sandbox(picture: &Picture<'_>, endpoint: &Endpoint) -> bool {
    picture.link(&endpoint.host_veth).is_some() || ipam::is_netns_alive(&endpoint.netns)
}

async fn look_at(picture: &Picture<'_>, site: &Site, endpoint: &Endpoint, findings: &mut Findings) {
    if !has_sandbox(picture, endpoint) {
        return;
    }
    let named = named(endpoint);
    let conf = picture.node.whole_network(endpoint.attachment.network());
    // A path that is gone while the sandbox lives on is the runtime's affair.
    if let Ok(netns) = Netns::open(Path::new(&endpoint.netns))
        && endpoint.netns_inode.is_none_or(|inode| netns.inode().ok() == Some(inode))
    {
        let promise = conf.map(|conf| Promise { conf, result: None });
        let defects = inspection::pod_side(&netns, endpoint, promise);
        for defect in findings.or_note(&named, defects).unwrap_or_default() {
            findings.add(kind(defect.aspect), format!("{named}: {defect}"));
        }
    }
    let is_old = look_at_build(picture, endpoint, &named, findings).await;
    let defects = inspection::host_side(site, endpoint, None).await;
    for defect in findings.or_note(&named, defects).unwrap_or_default() {
        // Another version's programs look into other maps.
        let is_of_programs =
            matches!(defect.aspect, Aspect::OtherProgram | Aspect::MapEntry | Aspect::Pins);
        if !(is_of_programs && is_old || defect.aspect == Aspect::Pins) {
            findings.add(kind(defect.aspect), format!("{named}: {defect}"));
        }
    }
    look_at_addresses(picture, endpoint, &named, findings);
    look_at_filters(picture, endpoint, &named, findings).await;
}

/// Whether it runs programs of another ABI version.
async fn look_at_build(
    picture: &Picture<'_>,
    endpoint: &Endpoint,
    named: &str,
    findings: &mut Findings,
) -> bool {
    let (Some(link), Some(current)) =
        (picture.link(&endpoint.host_veth), dataplane::current(&picture.builds))
    else {
        return false;
    };
    let attached = Datapath::programs_in_use(picture.netlink.handle(), link.index).await;
    let attached = findings.or_note(named, attached).unwrap_or_default();
    let is_of = |build: &&PinnedBuild| attached.iter().any(|id| build.programs.contains(id));
    let Some(build) = picture.builds.iter().filter(|build| *build != current).find(is_of) else {
        return false;
    };
    let PinnedBuild { build: name, abi_version, .. } = build;
    let text = format!(
        "{named} runs build {name} (ABI {abi_version}); new pods get {} (ABI {})",
        current.build, current.abi_version
    );
    findings.add(&ENDPOINT_OLD_BUILD, text);
    *abi_version != ABI_VERSION
}

/// Where another IPAM plugin gives the addresses, margay-ipam holds none.
fn look_at_addresses(
    picture: &Picture<'_>,
    endpoint: &Endpoint,
    named: &str,
    findings: &mut Findings,
) {
    let Some(site) = &picture.site else { return };
    let is_delegated = picture
        .node
        .whole_networks()
        .any(|conf| conf.name == endpoint.attachment.network() && conf.ipam.pools().is_none());
    let held = site.allocator().assigned(&endpoint.attachment).map_err(ipam::IpamError::from);
    let Some(held) = findings.or_note(named, held) else { return };
    let is_in_a_pool = |ip| picture.pools.iter().any(|pool| pool.cidr.contains(ip));
    for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
        if !is_delegated && is_in_a_pool(ip) && !held.contains(&ip) {
            let text = format!("{named} has address {ip}, which margay-ipam does not hold for it");
            findings.add(&ENDPOINT_ADDRESS_NOT_HELD, text);
        }
    }
}

async fn look_at_filters(
    picture: &Picture<'_>,
    endpoint: &Endpoint,
    named: &str,
    findings: &mut Findings,
) {
    let Some(link) = picture.link(&endpoint.host_veth) else { return };
    let root = &picture.paths().bpffs_root;
    let known: BTreeSet<_> = picture.builds.iter().flat_map(|build| &build.programs).collect();
    for hook in Program::OF_POD {
        let filters = Datapath::filters(root, picture.netlink.handle(), link.index, hook).await;
        let filters = findings.or_note(named, filters).unwrap_or_default();
        let is_ours = |filter: &AttachedFilter| {
            filter.is_in_margays_place || filter.program.is_some_and(|id| known.contains(&id))
        };
        let Some(place) = filters.iter().position(is_ours) else { continue };
        for filter in &filters[..place] {
            let AttachedFilter { kind, priority, .. } = filter;
            let program = filter.program.map(|id| format!(", program {id}")).unwrap_or_default();
            let text = format!(
                "on {} a {kind} filter of somebody else's (priority {priority}{program}) runs before {}, for {named}",
                link.name,
                hook.name()
            );
            findings.add(&FILTER_IN_FRONT, text);
        }
    }
}

async fn look_at_nat(picture: &Picture<'_>, findings: &mut Findings) {
    // Before the first pod nobody has asked for them.
    let has_pods = |network: &str| {
        picture.of_this_boot().any(|endpoint| endpoint.attachment.network() == network)
    };
    for network in &picture.node.networks {
        let Some(conf) = network.whole() else { continue };
        let Some(nat) = Nat::of(conf).filter(|_| has_pods(&conf.name)) else { continue };
        if network.lacks_pools() {
            let text = format!(
                "the NAT rules of network {} cannot be looked at: pools that it chooses in the datastore are not known",
                conf.name
            );
            findings.add(&NOT_LOOKED_AT, text);
            continue;
        }
        let defects = nat.findings().await;
        for defect in findings.or_note("NAT rules", defects).unwrap_or_default() {
            findings.add(&NAT_RULES, format!("network {}: {defect}", conf.name));
        }
    }
}

fn kind(aspect: Aspect) -> &'static Kind {
    match aspect {
        Aspect::PodInterface => &ENDPOINT_POD_INTERFACE,
        Aspect::PodAddress => &ENDPOINT_POD_ADDRESS,
        Aspect::PodRoute => &ENDPOINT_POD_ROUTE,
        Aspect::PodSysctl => &ENDPOINT_POD_SYSCTL,
        Aspect::HostVeth => &ENDPOINT_HOST_VETH,
        Aspect::HostRoute => &ENDPOINT_HOST_ROUTE,
        Aspect::Neighbour => &ENDPOINT_NEIGHBOUR,
        Aspect::Bandwidth => &ENDPOINT_BANDWIDTH,
        Aspect::HostSysctl => &ENDPOINT_SYSCTL,
        Aspect::Pins | Aspect::Program => &ENDPOINT_PROGRAM,
        Aspect::OtherProgram => &ENDPOINT_OTHER_PROGRAM,
        Aspect::MapEntry => &ENDPOINT_MAP_ENTRY,
    }
}

fn named(endpoint: &Endpoint) -> String {
    format!("{} ({})", name(endpoint), endpoint.host_veth)
}
