//! `margayctl node`: the nodes of the datastore.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;
use margay::config::Datastore;
use margay::result::mac_text;
use margay_datastore::{
    Caution, HEARTBEAT_INTERVAL, Heartbeat, Ledger, Revision, Store, remove_node,
};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, BAD, Cell, DIM, Format, GOOD, Report, Table, age};

/// So many heartbeats have to be missing before a node is silent, as its neighbours judge.
const MISSED: u32 = 4;

/// The nodes of the datastore.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists them, with their addresses, pods and the age of their agents' heartbeats
    List(List),
    /// Removes all that the datastore has of a node that is gone for good; says what that is, and does it with --yes
    Delete(Delete),
}

/// `node list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    watched: Watched,
}

/// `node delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The node, as `node list` has it
    node: String,
    /// Do it; without, only say what would be removed
    #[arg(long)]
    yes: bool,
    /// Do not wait to see that its agent writes no heartbeat. Of a node that runs on, pods keep addresses
    /// that others then get
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::List(List { watched }) => list(node, watched, format).await,
        Command::Delete(arguments) => delete(arguments, node, format),
    }
}

async fn list(node: &Node, watched: &Watched, format: Format) -> Result<(), Failure> {
    let (store, settings) = (node.store()?, node.settings()?);
    let datastore = match settings.datastore {
        Datastore::Local => "local",
        Datastore::Etcd(_) => "etcd",
    };
    let mut before = BTreeMap::new();
    let look = async || {
        let heartbeats = store.heartbeats()?;
        let nodes = rows(&store, &settings.nodename, &heartbeats, &before)?;
        let revisions = heartbeats.into_iter().map(|(beat, revision)| (beat.node, revision));
        before = revisions.collect();
        Ok(Nodes { datastore, nodes })
    };
    output::show_or_watch(watched, format, look).await
}

/// What `node list` shows.
#[derive(Debug, Serialize)]
struct Nodes {
    /// `local` or `etcd`.
    datastore: &'static str,
    nodes: Vec<NodeRow>,
}

#[derive(Debug, Serialize)]
struct NodeRow {
    name: String,
    is_this: bool,
    boot_id: String,
    addresses: Vec<IpNetwork>,
    overlay: Option<Overlay>,
    /// `heard`, `silent`, or `none` where no agent has run.
    agent: &'static str,
    /// By the node's own clock, in seconds since the Unix epoch.
    heartbeat_at: Option<u64>,
    blocks: usize,
    /// Addresses that are out on the node, in whosever blocks.
    used: usize,
    endpoints: usize,
}

#[derive(Debug, Serialize)]
struct Overlay {
    mac: String,
    addresses: Vec<IpAddr>,
}

fn rows(
    store: &Store,
    this: &str,
    heartbeats: &[(Heartbeat, Revision)],
    before: &BTreeMap<String, Revision>,
) -> Result<Vec<NodeRow>, Failure> {
    let ledger = store.ledger()?;
    let of_node = |node: margay_datastore::Node| {
        let heartbeat = heartbeats.iter().find(|(heartbeat, _)| heartbeat.node == node.name);
        NodeRow {
            is_this: node.name == this,
            agent: heartbeat.map_or("none", |(beat, revision)| {
                let was = before.get(&beat.node);
                if was.is_some_and(|was| was != revision) || is_recent(beat) {
                    "heard"
                } else {
                    "silent"
                }
            }),
            heartbeat_at: heartbeat.map(|(heartbeat, _)| heartbeat.at),
            blocks: blocks(&ledger, &node.name),
            used: used(&ledger, &node.name),
            endpoints: ledger.endpoints.iter().filter(|e| e.node == node.name).count(),
            name: node.name,
            boot_id: node.boot_id,
            addresses: node.addresses,
            overlay: node
                .overlay
                .map(|end| Overlay { mac: mac_text(end.mac), addresses: end.addresses }),
        }
    };
    Ok(store.nodes()?.into_iter().map(of_node).collect())
}

/// By this machine's clock: between two looks, whether it was written again tells more.
pub(super) fn is_recent(heartbeat: &Heartbeat) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(heartbeat.at) < (MISSED * HEARTBEAT_INTERVAL).as_secs()
}

fn blocks(ledger: &Ledger, node: &str) -> usize {
    ledger.blocks.iter().filter(|block| block.owner() == Some(node)).count()
}

fn used(ledger: &Ledger, node: &str) -> usize {
    let slots = ledger.blocks.iter().flat_map(|block| block.taken.values());
    slots.filter(|slot| slot.node == node).count()
}

impl Report for Nodes {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "datastore: {}", self.datastore)?;
        let mut table = Table::new([
            "NODE",
            "ADDRESSES",
            "OVERLAY",
            "AGENT",
            "HEARTBEAT",
            "BLOCKS",
            "USED",
            "ENDPOINTS",
        ]);
        for node in &self.nodes {
            let mark = if node.is_this { " (this)" } else { "" };
            let overlay = node.overlay.as_ref().map(|end| listed(&end.addresses));
            table.row([
                format!("{}{mark}", node.name).into(),
                listed(&node.addresses).into(),
                Cell::optional(overlay),
                match node.agent {
                    "heard" => Cell::styled("heard", GOOD),
                    "silent" => Cell::styled("silent", BAD),
                    _ => Cell::styled("none", DIM),
                },
                Cell::optional(node.heartbeat_at.map(|at| format!("{} ago", age(at)))),
                Cell::number(node.blocks),
                Cell::number(node.used),
                Cell::number(node.endpoints),
            ]);
        }
        write!(out, "{table}")
    }
}

fn listed(values: &[impl fmt::Display]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn delete(delete: &Delete, node: &Node, format: Format) -> Result<(), Failure> {
    let (store, settings) = (node.store()?, node.settings()?);
    let name = &delete.node;
    if *name == settings.nodename {
        let reason = format!("{name} is this node: a node is deleted from another one");
        return Err(Failure::Refused(reason));
    }
    let unknown =
        || Failure::Unknown { kind: "node", name: name.clone(), list: "margayctl node list" };
    // It takes a minute to see that a node is dead, which need not be awaited of one that there is not.
    if !store.has_anything_of(name)? {
        return Err(unknown());
    }
    if !delete.yes {
        let ledger = store.ledger()?;
        let endpoints = ledger.endpoints.iter().filter(|e| e.node == *name).count();
        let (blocks, used) = (blocks(&ledger, name), used(&ledger, name));
        let reason = format!(
            "{name} has {endpoints} endpoints, {used} addresses and {blocks} blocks, which other \
             nodes would get: --yes removes them"
        );
        return Err(Failure::Refused(reason));
    }
    let caution = if delete.force { Caution::Forced } else { Caution::default() };
    let removed = remove_node(&store, name, caution)?;
    if removed.is_empty() {
        return Err(unknown());
    }
    let addresses = removed.released.iter().flat_map(|(_, addresses)| addresses).copied();
    let deleted = Deleted {
        node: name.clone(),
        endpoints: removed.endpoints.iter().map(ToString::to_string).collect(),
        addresses: addresses.collect(),
        blocks: removed.blocks,
    };
    output::show(&deleted, format)
}

/// What `node delete` shows.
#[derive(Debug, Serialize)]
struct Deleted {
    node: String,
    endpoints: Vec<String>,
    addresses: Vec<IpAddr>,
    blocks: Vec<IpNetwork>,
}

impl Report for Deleted {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Self { node, endpoints, addresses, blocks } = self;
        let counts = (endpoints.len(), addresses.len(), blocks.len());
        let (endpoints, addresses, blocks) = counts;
        writeln!(
            out,
            "removed node {node}: {endpoints} endpoints, {addresses} addresses, {blocks} blocks"
        )
    }
}
