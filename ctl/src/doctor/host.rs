//! The host around the pods: sysctls, routes, MTU, conntrack, firewall.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use margay::config::{AgentConf, NetConf};
use margay::dataplane;
use margay::mtu::{ELSEWHERE, Mtu, MtuSource};
use margay::sysctl;
use margay_datastore::{Encapsulation, Endpoint, Pool};

use super::catalogue::{
    CONNTRACK_NEARLY_FULL, FORWARD_DROPS, FORWARDING_OFF, MTU_TOO_LARGE, NO_DEFAULT_ROUTE,
    RP_FILTER_STRICT,
};
use super::finding::{Finding, Findings};
use super::is_nearly_full;
use super::leftovers::MAIN_TABLE;
use super::picture::Picture;
use crate::endpoints::name;
use crate::firewall;

pub(super) async fn look(picture: &Picture<'_>, findings: &mut Findings) {
    look_at_forwarding(picture, findings);
    look_at_default_route(picture, findings);
    if let Some(agent) = &picture.node.agent {
        look_at_reverse_path(picture, agent, findings).await;
    }
    look_at_mtu(picture, findings).await;
    look_at_conntrack(findings);
}

/// Whether the host's firewall drops what pods send by way of the stack.
pub(super) fn look_at_firewall(picture: &Picture<'_>, findings: &mut Findings) {
    let mut pools = BTreeSet::new();
    // The bridge of another plugin has rules of its own.
    for set in picture.node.whole_networks().filter_map(|conf| conf.ipam.pools()) {
        pools.extend(set.usable.iter().map(|pool| pool.cidr));
    }
    if pools.is_empty() {
        return;
    }
    for chain in firewall::chains() {
        let Some(chain) = findings.or_note("the host's firewall", chain) else { continue };
        let dropped = pools.iter().filter(|pool| chain.drops(pool)).map(ToString::to_string);
        let dropped = dropped.collect::<Vec<_>>().join(", ");
        if !dropped.is_empty() {
            let name = chain.name;
            let text =
                format!("{name} drops what no rule of it accepts, and none accepts {dropped}");
            findings.add(&FORWARD_DROPS, text);
        }
    }
}

/// The switch of IPv4 and that of IPv6.
const SWITCHES: [(bool, &str); 2] =
    [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")];

fn look_at_forwarding(picture: &Picture<'_>, findings: &mut Findings) {
    for (ipv4, key) in SWITCHES {
        let mut addresses = picture.of_this_boot().flat_map(|endpoint| &endpoint.ips);
        if addresses.any(|ip| ip.is_ipv4() == ipv4) && sysctl::get(key).is_ok_and(|it| it == "0") {
            findings.add(&FORWARDING_OFF, is_off(key));
        }
    }
}

fn is_off(key: &str) -> String {
    format!("sysctl net/{key} is 0")
}

/// Whether it was found that the host does not forward this family.
pub(super) fn is_forwarding_off(ipv4: bool, found: &[Finding]) -> bool {
    let mut switches = SWITCHES.iter().filter(|(of_ipv4, _)| *of_ipv4 == ipv4);
    switches.any(|(_, key)| {
        let sentence = is_off(key);
        found.iter().any(|it| it.kind == &FORWARDING_OFF && it.finding == sentence)
    })
}

/// Of IPv6 the host answers for the gateway by itself, which is its own link-local address.
fn look_at_default_route(picture: &Picture<'_>, findings: &mut Findings) {
    let is_default = |ipv4: bool| {
        let mut routes = picture.routes.iter();
        routes.any(|route| {
            route.prefix_length == 0
                && route.table == MAIN_TABLE
                && route.gateway.is_none_or(|gateway| gateway.is_ipv4() == ipv4)
        })
    };
    let by_stack = |endpoint: &&Endpoint| {
        endpoint.dataplane == dataplane::LINUX && endpoint.ips.iter().any(|ip| ip.is_ipv4())
    };
    if !is_default(true)
        && let Some(endpoint) = picture.of_this_boot().find(by_stack)
    {
        let text = format!("there is no default route, and {} needs one", name(endpoint));
        findings.add(&NO_DEFAULT_ROUTE, text);
    }
}

async fn look_at_reverse_path(picture: &Picture<'_>, agent: &AgentConf, findings: &mut Findings) {
    // Of IPv6 there is no such filter, and without other nodes no way to them.
    let of_ipv4 = picture.pools.iter().filter(|pool| pool.cidr.is_ipv4());
    let modes: HashSet<Encapsulation> = of_ipv4.map(|pool| pool.encapsulation).collect();
    if modes.len() < 2 || !picture.has_others() {
        return;
    }
    let mut to_others: Vec<_> = agent.node_addresses.iter().map(|address| address.ip()).collect();
    to_others.push(ELSEWHERE[0]);
    for address in to_others {
        let Ok(Some((_, ifindex))) = picture.netlink.next_hop_to(address).await else { continue };
        let Some(link) = picture.links.iter().find(|link| link.index == ifindex) else { continue };
        let strictness = |of: &str| sysctl::get(&format!("ipv4/conf/{of}/rp_filter")).ok();
        // The stricter of the two is not the greater: 2 is loose, and the kernel takes the greater.
        if strictness("all").max(strictness(&link.name)).as_deref() == Some("1") {
            let text =
                format!("rp_filter of {} is strict, and pools differ in vxlan_mode", link.name);
            return findings.add(&RP_FILTER_STRICT, text);
        }
    }
}

async fn look_at_mtu(picture: &Picture<'_>, findings: &mut Findings) {
    for overlay in [false, true] {
        let mut endpoints =
            picture.of_this_boot().filter(|it| leaves_room(picture, it) == overlay).peekable();
        if endpoints.peek().is_none() {
            continue;
        }
        let found = Mtu::find(&picture.netlink, None, overlay).await;
        let Some(mtu) = findings.or_note("the way outside", found) else { continue };
        if mtu.source == MtuSource::Default {
            continue;
        }
        for endpoint in endpoints.filter(|endpoint| endpoint.mtu > mtu.bytes) {
            let text = format!(
                "{} has MTU {}, and outside goes {} ({})",
                name(endpoint),
                endpoint.mtu,
                mtu.bytes,
                mtu.source
            );
            findings.add(&MTU_TOO_LARGE, text);
        }
    }
}

/// Whether its packets have to leave room for VXLAN: by its network's configuration, as for its ADD, and without
/// one by the pools that its addresses are of.
fn leaves_room(picture: &Picture<'_>, endpoint: &Endpoint) -> bool {
    let conf = picture.node.whole_network(endpoint.attachment.network());
    let is_in = |pool: &Pool| endpoint.ips.iter().any(|ip| pool.cidr.contains(ip.ip()));
    conf.map_or_else(
        || {
            let mut pools = picture.pools.iter().filter(|pool| is_in(pool));
            pools.any(|pool| pool.encapsulation != Encapsulation::None)
        },
        NetConf::uses_vxlan,
    )
}

/// A kernel without conntrack has no such files, and nothing to fill.
fn look_at_conntrack(findings: &mut Findings) {
    let read = |name: &str| -> Option<u128> {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.ok()?.trim().parse().ok()
    };
    if let (Some(count), Some(max)) = (read("count"), read("max"))
        && max > 0
        && is_nearly_full(count, max)
    {
        let text = format!("conntrack has {count} connections of {max}");
        findings.add(&CONNTRACK_NEARLY_FULL, text);
    }
}
