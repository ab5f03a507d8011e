//! What belongs to nobody.
//!
//! No lock is taken, and records are read before links: a verb that came in between looks as if it had left something
//! behind. So what it may have in hand is left out here, and what one look finds is believed if a second one finds it
//! as well (`mod.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use margay::deletions::Deletions;
use margay::ipam;
use margay::lock::Lock;
use margay::naming;
use margay::netlink::{REMOTE_ROUTE_PROTOCOL, ROUTE_PROTOCOL};
use margay_datastore::{Attachment, Holding};

use super::catalogue::{
    DELETIONS_PUT_OFF, LEFTOVER_ADDRESS, LEFTOVER_IFB, LEFTOVER_LINK, LEFTOVER_MAP_ENTRY,
    LEFTOVER_ROUTE,
};
use super::finding::Findings;
use super::picture::Picture;

/// `RT_TABLE_MAIN`.
pub(super) const MAIN_TABLE: u32 = 254;

/// One look.
pub(super) fn look(picture: &Picture<'_>, findings: &mut Findings) {
    look_at_deletions(picture, findings);
    if picture.site.is_none() {
        return;
    }
    let known: BTreeSet<&Attachment> =
        picture.endpoints.iter().map(|endpoint| &endpoint.attachment).collect();
    let held: BTreeSet<&Attachment> =
        picture.holdings.iter().map(|holding| &holding.attachment).collect();
    look_at_links(picture, &known, &held, findings);
    look_at_holdings(picture, &known, findings);
    let addresses: BTreeMap<IpAddr, &Attachment> = picture
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint.ips.iter().map(|ip| (ip.ip(), &endpoint.attachment)))
        .collect();
    look_at_entries(picture, &addresses, findings);
    look_at_routes(picture, &addresses, findings);
}

fn look_at_deletions(picture: &Picture<'_>, findings: &mut Findings) {
    let put_off = Deletions::below(&picture.paths().state_dir).attachments();
    for attachment in findings.or_note("deletions that were put off", put_off).unwrap_or_default() {
        let text = format!("{attachment} is gone, and the datastore does not know it yet");
        findings.add(&DELETIONS_PUT_OFF, text);
    }
}

/// What is held for an attachment is one whose ADD is at work.
fn look_at_links(
    picture: &Picture<'_>,
    known: &BTreeSet<&Attachment>,
    held: &BTreeSet<&Attachment>,
    findings: &mut Findings,
) {
    for link in &picture.links {
        let attachment = link.alias.as_deref().and_then(naming::attachment_of_alias);
        let Some(attachment) = attachment else { continue };
        let is_known = known.contains(&attachment) || held.contains(&attachment);
        if is_known || is_in_hand(picture, &attachment) {
            continue;
        }
        let is_ifb = link.name == naming::ifb(&attachment);
        let kind = if is_ifb { &LEFTOVER_IFB } else { &LEFTOVER_LINK };
        findings
            .add(kind, format!("{} is of {attachment}, of which there is no record", link.name));
    }
}

fn look_at_holdings(picture: &Picture<'_>, known: &BTreeSet<&Attachment>, findings: &mut Findings) {
    for Holding { attachment, netns, .. } in &picture.holdings {
        // What names no namespace is the node's own, on the overlay.
        let Some(netns) = netns else { continue };
        let has_link = picture.link(&naming::host_veth(attachment)).is_some();
        let is_known = known.contains(attachment) || is_in_hand(picture, attachment);
        if !is_known && !has_link && !ipam::is_netns_alive(netns) {
            let text = format!("{attachment} holds addresses, and its sandbox {netns} is gone");
            findings.add(&LEFTOVER_ADDRESS, text);
        }
    }
}

fn look_at_entries(
    picture: &Picture<'_>,
    addresses: &BTreeMap<IpAddr, &Attachment>,
    findings: &mut Findings,
) {
    for (address, entry) in picture.entries.iter().flatten() {
        let link = picture.links.iter().find(|link| link.index == entry.ifindex);
        let of_whom = link.and_then(|link| naming::attachment_of_alias(link.alias.as_deref()?));
        match link {
            None if addresses.get(address).is_some_and(|of| is_in_hand(picture, of)) => {}
            None => findings.add(
                &LEFTOVER_MAP_ENTRY,
                format!("{address} leads to interface {}, which is gone", entry.ifindex),
            ),
            Some(link) if !addresses.contains_key(address) && of_whom.is_none() => findings.add(
                &LEFTOVER_MAP_ENTRY,
                format!("{address} leads to {}, and is no endpoint's address", link.name),
            ),
            Some(_) => {}
        }
    }
}

fn look_at_routes(
    picture: &Picture<'_>,
    addresses: &BTreeMap<IpAddr, &Attachment>,
    findings: &mut Findings,
) {
    for route in picture.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL) {
        let Some(destination) = route.destination.filter(|_| route.table == MAIN_TABLE) else {
            continue;
        };
        let link = picture.links.iter().find(|link| Some(link.index) == route.ifindex);
        // A link that nobody knows has been named.
        let is_of_a_link = link.is_some_and(|link| link.alias.is_some());
        if !addresses.contains_key(&destination) && !is_of_a_link {
            let over = link.map_or("nothing", |link| link.name.as_str());
            let text = format!("route {destination} over {over} is of no endpoint");
            findings.add(&LEFTOVER_ROUTE, text);
        }
    }
}

/// Whether a verb is at work on it.
fn is_in_hand(picture: &Picture<'_>, attachment: &Attachment) -> bool {
    Lock::is_held(&picture.paths().run_dir, &naming::host_veth(attachment))
}

/// Whether a route is one of margay's own making.
pub(super) fn is_margays(protocol: u8) -> bool {
    [ROUTE_PROTOCOL, REMOTE_ROUTE_PROTOCOL].contains(&protocol)
}
