//! The agent of a node among several: whether it answers, is heard of, and has made the routes.
//!
//! It may be about to: what one look finds is believed if a second one finds it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use margay::netlink::REMOTE_ROUTE_PROTOCOL;
use margay_datastore::{Node, Placement};

use super::PAUSE;
use super::catalogue::{AGENT_NOT_READY, AGENT_SILENT, HEARTBEAT_STALE, REMOTE_ROUTE_MISSING};
use super::finding::Findings;
use super::leftovers::MAIN_TABLE;
use super::picture::Picture;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// After this, other nodes call it silent.
const SILENCE: Duration = Duration::from_secs(120);

pub(super) async fn look(picture: &Picture<'_>, findings: &mut Findings) {
    let first = look_once(picture);
    if first.0.is_empty() {
        return;
    }
    tokio::time::sleep(PAUSE).await;
    // What it says may be another sentence by then.
    let is_twice = |kind| first.0.iter().any(|finding| finding.kind == kind);
    let second = look_once(picture).0.into_iter().filter(|finding| is_twice(finding.kind));
    findings.0.extend(second);
}

fn look_once(picture: &Picture<'_>) -> Findings {
    let mut findings = Findings::default();
    if !picture.has_others() {
        return findings;
    }
    match picture.node.agent.as_ref().map(|conf| conf.metrics_address) {
        None if is_needed(picture) => {
            findings.add(&AGENT_SILENT, "there is etcd, and no configuration of an agent");
        }
        Some(Some(address)) => look_at_health(picture, address, &mut findings),
        // It was told not to answer; its heartbeat tells.
        None | Some(None) => {}
    }
    look_at_heartbeat(picture, &mut findings);
    findings
}

/// Whether there is anybody on other nodes that pods of margay's reach by what an agent does here.
fn is_needed(picture: &Picture<'_>) -> bool {
    let Some(site) = picture.site.as_ref().filter(|_| picture.has_others()) else { return false };
    let is_another = |node: &str| node != site.nodename && !node.is_empty();
    picture.node.whole_networks().next().is_some()
        && (picture.nodes.iter().any(|node| is_another(&node.name))
            || picture.placements.iter().any(|block| is_another(&block.node)))
}

fn look_at_health(picture: &Picture<'_>, address: SocketAddr, findings: &mut Findings) {
    match ask(address, "/healthz") {
        Ok((200, _)) => {}
        _ if !is_needed(picture) => return,
        Ok((status, body)) => {
            let text = format!("the agent at {address} answers {status}: {}", body.trim());
            return findings.add(&AGENT_SILENT, text);
        }
        Err(error) => {
            let text = format!("the agent at {address} does not answer: {error}");
            return findings.add(&AGENT_SILENT, text);
        }
    }
    if let Ok((status, body)) = ask(address, "/readyz")
        && status != 200
    {
        let text = format!("the agent says what is not done: {}", body.trim());
        findings.add(&AGENT_NOT_READY, text);
    }
}

/// The status and the body of an answer.
pub(crate) fn ask(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(1 << 16).read_to_string(&mut answer)?;
    let malformed = || io::Error::other("what answers does not speak HTTP");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    Ok((status.ok_or_else(malformed)?, body.to_owned()))
}

/// By the clock of this node, which wrote it.
fn look_at_heartbeat(picture: &Picture<'_>, findings: &mut Findings) {
    let Some(site) = &picture.site else { return };
    let heartbeats = site.store.heartbeats();
    let Some(heartbeats) = findings.or_note("heartbeats", heartbeats) else { return };
    let ours = heartbeats.iter().find(|(heartbeat, _)| heartbeat.node == site.nodename);
    let Some((heartbeat, _)) = ours else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_secs(heartbeat.at));
    if age > SILENCE {
        let text = format!("this node was heard of {} s ago last", age.as_secs());
        findings.add(&HEARTBEAT_STALE, text);
    }
}

/// Another node's block, and that node.
pub(super) type Way<'p> = (&'p str, IpNetwork);

/// The blocks of other nodes that no route of the agent's leads to, by one look.
pub(super) fn missing_ways<'p>(picture: &'p Picture<'_>) -> BTreeSet<Way<'p>> {
    let Some(site) = picture.site.as_ref().filter(|_| is_needed(picture)) else {
        return BTreeSet::new();
    };
    let has_route = |cidr: IpNetwork| {
        picture.routes.iter().any(|route| {
            route.protocol == REMOTE_ROUTE_PROTOCOL
                && route.table == MAIN_TABLE
                && route.destination == Some(cidr.network())
                && route.prefix_length == cidr.prefix()
        })
    };
    // A block that its node gave up has none to lead to; addresses that are still out lead by themselves.
    let is_of_another = |block: &&Placement| block.node != site.nodename && !block.node.is_empty();
    let of_others = picture.placements.iter().filter(is_of_another);
    of_others
        .filter(|block| !has_route(block.cidr))
        .map(|block| (block.node.as_str(), block.cidr))
        .collect()
}

/// What the programs know of other nodes' pods and is not so, each a sentence, by one look.
pub(super) fn wrong_entries(picture: &Picture<'_>) -> BTreeSet<String> {
    let Some(site) = &picture.site else { return BTreeSet::new() };
    let of_others = |node: &&str| !node.is_empty() && **node != *site.nodename;
    let owner = |prefix: &IpNetwork| {
        let borrower = |block: &Placement| {
            let mut borrowed = block.borrowed.iter();
            borrowed.find(|(ip, _)| IpNetwork::from(**ip) == *prefix).map(|(_, node)| node.clone())
        };
        let mut blocks = picture.placements.iter();
        blocks.find_map(|block| match block.cidr == *prefix {
            true => Some(block.node.clone()),
            false => borrower(block),
        })
    };
    let mut wrong = BTreeSet::new();
    for (prefix, remote) in &picture.remotes {
        let leads_to = Ipv6Addr::from(remote.node).to_canonical();
        let owner = owner(prefix).filter(|node| of_others(&node.as_str()));
        let record = picture.nodes.iter().find(|node| Some(&node.name) == owner.as_ref());
        let is_its = |node: &Node| node.addresses.iter().any(|own| own.ip() == leads_to);
        wrong.extend(match (owner, record) {
            (None, _) => Some(format!("{prefix} leads to {leads_to}, and no other node has it")),
            (Some(owner), Some(record)) if !is_its(record) => Some(format!(
                "{prefix} is of node {owner}, and leads to {leads_to}, which is not its address"
            )),
            // Whose record is gone has left, and its blocks go with it.
            _ => None,
        });
    }
    wrong
}

/// Names them, of each node all at once.
pub(super) fn name_ways<'w, 'p: 'w>(
    missing: impl Iterator<Item = &'w Way<'p>>,
    findings: &mut Findings,
) {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, block) in missing {
        by_node.entry(node).or_default().push(block.to_string());
    }
    for (node, blocks) in by_node {
        let text = format!("no route leads to {} of node {node}", blocks.join(", "));
        findings.add(&REMOTE_ROUTE_MISSING, text);
    }
}
