//! `margayctl pool`: ranges that addresses come from.
//!
//! A pool is what the network configurations of all nodes say it is: each ADD writes down its own's. What an
//! operator says here is whether it gives addresses at all, which no configuration overrules, and, before
//! the first ADD, how it is cut into blocks.

use std::collections::BTreeSet;
use std::fmt;

use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use margay::config;
use margay::ipam;
use margay_datastore::{Encapsulation, Ipam, Ledger, Pool};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, GOOD, Report, Table, WARNING, bar};

/// Ranges that addresses come from.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists all that were ever used or created, and those of this node's configuration, with how full they are
    List(List),
    /// Writes a range down before any network configuration names it. It gives addresses once one does: by its name or
    /// range in ipam.ipv4_pools or ipam.ipv6_pools, or with all that it is in ipam.pools
    Create(Create),
    /// Lets a pool give addresses again, unless a configuration disables it
    Enable(One),
    /// Has a pool give no new addresses, whatever network configurations say; those that are out stay
    Disable(One),
    /// Forgets a pool that has no addresses out, with its blocks. One that a configuration names comes back
    /// with the next ADD
    Delete(One),
}

/// `pool list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    watched: Watched,
}

/// `pool create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its range
    cidr: IpNetwork,
    /// What ipam.ipv4_pools and ipam.ipv6_pools of network configurations may call it
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// What its pods send to the outside leaves with their node's address
    #[arg(long)]
    nat_outgoing: bool,
    /// Whether its pods on other nodes are reached through VXLAN
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    vxlan_mode: VxlanMode,
    /// Prefix length of the blocks that nodes take from it: 20 to 32 (default 26), IPv6 116 to 128
    /// (default 122)
    #[arg(long, value_name = "LENGTH")]
    block_size: Option<u8>,
    /// Disabled until `pool enable`, on every node at once
    #[arg(long)]
    disabled: bool,
}

/// As network configurations write it.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum VxlanMode {
    /// To every other node
    Always,
    /// To nodes on another subnet
    CrossSubnet,
    /// Plain routing
    #[default]
    Never,
}

impl From<VxlanMode> for Encapsulation {
    fn from(mode: VxlanMode) -> Self {
        match mode {
            VxlanMode::Always => Self::Vxlan,
            VxlanMode::CrossSubnet => Self::VxlanCrossSubnet,
            VxlanMode::Never => Self::None,
        }
    }
}

/// Of one pool.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Its range or its name
    #[arg(value_name = "CIDR|NAME")]
    pool: String,
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::List(List { watched }) => {
            let store = node.store()?;
            let look = async || Ok(Pools { pools: rows(node, &store.pools()?, &store.ledger()?) });
            output::show_or_watch(watched, format, look).await
        }
        Command::Create(create) => output::show(&create.run(node)?, format),
        Command::Enable(one) => output::show(&one.set_closed(node, false)?, format),
        Command::Disable(one) => output::show(&one.set_closed(node, true)?, format),
        Command::Delete(one) => output::show(&one.delete(node)?, format),
    }
}

impl Create {
    fn run(&self, node: &Node) -> Result<Done, Failure> {
        let settings = node.settings()?;
        let store = ipam::open_store(&settings.datastore, &settings.paths.database())?;
        let new = Pool::new(self.cidr);
        let block_size = self.block_size.unwrap_or(new.block_size).max(self.cidr.prefix());
        let pool = Pool {
            block_size,
            name: self.name.clone().unwrap_or_default(),
            nat_outgoing: self.nat_outgoing,
            encapsulation: self.vxlan_mode.into(),
            closed: self.disabled,
            ..new
        };
        let boot_id = ipam::boot_id()?;
        let ipam = Ipam::new(&store, &settings.nodename, &boot_id);
        ipam.create_pool(&pool).map_err(ipam::IpamError::from)?;
        let named = named(node, &self.cidr);
        let note = match named.is_empty() {
            true => {
                "it gives addresses once a network configuration names it: in ipam.ipv4_pools, ipam.ipv6_pools or \
                 ipam.pools"
            }
            false => "a network configuration names it",
        };
        Ok(Done { pool: self.cidr, did: "created", networks: named, note: Some(note.to_owned()) })
    }
}

impl One {
    fn set_closed(&self, node: &Node, closed: bool) -> Result<Done, Failure> {
        let (store, pool) = (node.store()?, self.cidr(node)?);
        let changed = node.allocator(&store)?.set_pool_closed(&pool, closed);
        let changed = changed.map_err(ipam::IpamError::from)?;
        let record = store.pools()?.into_iter().find(|record| record.cidr == pool);
        let is_disabled = record.is_some_and(|record| record.disabled);
        let (did, note) = match (closed, changed) {
            (true, true) => ("disabled", Some("addresses that are out stay valid")),
            (true, false) => ("was disabled already", None),
            (false, _) if is_disabled => (
                "enabled",
                Some("a network configuration disables it, so it gives addresses once none does"),
            ),
            (false, true) => ("enabled", None),
            (false, false) => ("was enabled already", None),
        };
        Ok(Done { pool, did, networks: named(node, &pool), note: note.map(str::to_owned) })
    }

    fn delete(&self, node: &Node) -> Result<Done, Failure> {
        let (store, pool) = (node.store()?, self.cidr(node)?);
        let deleted = node.allocator(&store)?.delete_pool(&pool);
        deleted.map_err(ipam::IpamError::from)?;
        let networks = named(node, &pool);
        let note = (!networks.is_empty())
            .then_some(
            "a network configuration names it: the next ADD brings it back, enabled, or fails, where only \
             ipam.ipv4_pools or ipam.ipv6_pools names it",
        );
        Ok(Done { pool, did: "deleted", networks, note: note.map(str::to_owned) })
    }

    fn cidr(&self, node: &Node) -> Result<IpNetwork, Failure> {
        if let Ok(cidr) = self.pool.parse() {
            return Ok(cidr);
        }
        // Networks of other nodes may have written another one down by the same name.
        let stored = node.store()?.pools()?;
        let stored = stored.into_iter().filter(|pool| pool.name == self.pool);
        let configured = configured(node).into_iter().map(|(_, pool)| pool);
        let configured = configured.filter(|pool| pool.name.as_deref() == Some(&self.pool));
        let ranges: BTreeSet<IpNetwork> =
            stored.map(|pool| pool.cidr).chain(configured.map(|pool| pool.cidr)).collect();
        let name = self.pool.clone();
        match ranges.into_iter().collect::<Vec<_>>().as_slice() {
            [cidr] => Ok(*cidr),
            [] => Err(Failure::Unknown { kind: "pool", name, list: "margayctl pool list" }),
            several => {
                let candidates = several.iter().map(ToString::to_string).collect();
                Err(Failure::Ambiguous { kind: "pools", name, candidates })
            }
        }
    }
}

/// The pools of this node's configuration, each with its network.
fn configured(node: &Node) -> Vec<(&str, &config::Pool)> {
    let mut pools = Vec::new();
    for network in &node.networks {
        let Some(set) = network.pools() else { continue };
        pools.extend(set.all.iter().map(|pool| (network.name.as_str(), pool)));
    }
    pools
}

/// The networks of this node's configuration that name a pool.
fn named(node: &Node, cidr: &IpNetwork) -> Vec<String> {
    let of_pool = configured(node).into_iter().filter(|(_, pool)| pool.cidr == *cidr);
    of_pool.map(|(network, _)| network.to_owned()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What `pool list` shows.
#[derive(Debug, Serialize)]
struct Pools {
    pools: Vec<PoolRow>,
}

/// A pool, and how full it is.
#[derive(Debug, Serialize)]
pub(crate) struct PoolRow {
    pub(crate) cidr: IpNetwork,
    /// What configurations may call it.
    pub(crate) name: Option<String>,
    pub(crate) block_size: u8,
    pub(crate) blocks: usize,
    /// Addresses that it can hand out, as far as 64 bits count them.
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) nat_outgoing: bool,
    pub(crate) encapsulation: Encapsulation,
    /// `enabled`, `disabled` by a network configuration or by an operator, or `unused`: configured here, and
    /// no ADD has used it.
    pub(crate) state: &'static str,
    pub(crate) disabled_by_configuration: bool,
    pub(crate) disabled_by_operator: bool,
    /// Networks of this node's configuration that name it.
    pub(crate) networks: Vec<String>,
}

/// Every pool of the datastore, then those of this node's configuration that are not there.
pub(crate) fn rows(node: &Node, pools: &[Pool], ledger: &Ledger) -> Vec<PoolRow> {
    let mut rows: Vec<PoolRow> = pools.iter().map(|pool| row(node, pool, ledger)).collect();
    for (_, configured) in configured(node) {
        if !rows.iter().any(|row| row.cidr == configured.cidr) {
            rows.push(PoolRow { state: "unused", ..row(node, &Pool::from(configured), ledger) });
        }
    }
    rows
}

fn row(node: &Node, pool: &Pool, ledger: &Ledger) -> PoolRow {
    let blocks = || ledger.blocks.iter().filter(|block| pool.cidr.contains(block.cidr.ip()));
    let taken = blocks().flat_map(|block| block.taken.keys());
    PoolRow {
        cidr: pool.cidr,
        name: Some(pool.name.clone()).filter(|name| !name.is_empty()),
        block_size: pool.block_size,
        blocks: blocks().filter(|block| block.owner().is_some()).count(),
        capacity: u64::try_from(pool.capacity()).unwrap_or(u64::MAX),
        used: taken.filter(|ip| pool.cidr.contains(**ip)).count() as u64,
        nat_outgoing: pool.nat_outgoing,
        encapsulation: pool.encapsulation,
        state: if pool.is_open() { "enabled" } else { "disabled" },
        disabled_by_configuration: pool.disabled,
        disabled_by_operator: pool.closed,
        networks: named(node, &pool.cidr),
    }
}

/// For people.
pub(crate) fn table(pools: &[PoolRow]) -> Table {
    let mut table = Table::new([
        "POOL",
        "USED",
        "OF",
        "USE",
        "BLOCKS",
        "SIZE",
        "NAT",
        "ENCAPSULATION",
        "STATE",
    ]);
    for pool in pools {
        let capacity = match pool.capacity {
            u64::MAX => "2^64 or more".to_owned(),
            capacity => capacity.to_string(),
        };
        let shown = match &pool.name {
            Some(name) => format!("{} ({name})", pool.cidr),
            None => pool.cidr.to_string(),
        };
        table.row([
            shown.into(),
            Cell::number(pool.used),
            Cell::number(capacity),
            bar(pool.used.into(), pool.capacity.into()).into(),
            Cell::number(pool.blocks),
            Cell::number(format_args!("/{}", pool.block_size)),
            if pool.nat_outgoing { "yes" } else { "no" }.into(),
            match pool.encapsulation {
                Encapsulation::None => "none",
                Encapsulation::Vxlan => "vxlan",
                Encapsulation::VxlanCrossSubnet => "vxlan across subnets",
            }
            .into(),
            match (pool.state, pool.disabled_by_operator) {
                ("enabled", _) => Cell::styled("enabled", GOOD),
                ("disabled", true) => Cell::styled("disabled by an operator", WARNING),
                ("disabled", false) => Cell::styled("disabled by configuration", WARNING),
                (other, _) => other.into(),
            },
        ]);
    }
    table
}

impl Report for Pools {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{}", table(&self.pools))
    }
}

/// What the other commands show.
#[derive(Debug, Serialize)]
struct Done {
    pool: IpNetwork,
    did: &'static str,
    /// Networks of this node's configuration that name it.
    networks: Vec<String>,
    note: Option<String>,
}

impl Report for Done {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "pool {} {}", self.pool, self.did)?;
        self.note.as_ref().map_or(Ok(()), |note| writeln!(out, "{note}"))
    }
}
