//! `margayctl ipam show`.

use std::fmt;
use std::net::IpAddr;

use clap::Args;
use ipnetwork::IpNetwork;
use margay_datastore::{BlockEntry, Ledger, Pool, Slot, Store};
use serde::Serialize;

use crate::arguments::Watched;
use crate::commands::pool::{self, PoolRow};
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, BOLD, Cell, Format, Report, Table, age, bar};

/// `ipam show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Who has this address
    #[arg(conflicts_with = "block")]
    address: Option<IpAddr>,
    /// Who has the addresses of this block
    #[arg(long, value_name = "CIDR")]
    block: Option<IpNetwork>,
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(show: &Show, node: &Node, format: Format) -> Result<(), Failure> {
    let store = node.store()?;
    let watched = &show.watched;
    match (show.address, show.block) {
        (Some(address), _) => {
            let look = async || Address::look(&store, address);
            output::show_or_watch(watched, format, look).await
        }
        (None, Some(block)) => {
            let look = async || Block::look(&store, &block);
            output::show_or_watch(watched, format, look).await
        }
        (None, None) => {
            let look = async || Overview::look(node, &store);
            output::show_or_watch(watched, format, look).await
        }
    }
}

/// What `ipam show` shows.
#[derive(Debug, Serialize)]
struct Overview {
    pools: Vec<PoolRow>,
    blocks: Vec<BlockRow>,
}

#[derive(Debug, Serialize)]
struct BlockRow {
    cidr: IpNetwork,
    pool: Option<IpNetwork>,
    node: Option<String>,
    used: usize,
    slots: usize,
    /// Of those, on other nodes than the block's.
    borrowed: usize,
    /// Addresses that were out before and are free.
    released: usize,
}

impl BlockRow {
    fn of(block: &BlockEntry, pools: &[Pool]) -> Self {
        let owner = block.owner();
        Self {
            cidr: block.cidr,
            pool: pool_of(block.cidr.ip(), pools),
            node: owner.map(str::to_owned),
            used: block.taken.len(),
            slots: block.slots,
            borrowed: block.taken.values().filter(|slot| Some(slot.node.as_str()) != owner).count(),
            released: block.released,
        }
    }
}

fn pool_of(ip: IpAddr, pools: &[Pool]) -> Option<IpNetwork> {
    pools.iter().map(|pool| pool.cidr).find(|pool| pool.contains(ip))
}

impl Overview {
    fn look(node: &Node, store: &Store) -> Result<Self, Failure> {
        let (pools, ledger) = (store.pools()?, store.ledger()?);
        Ok(Self {
            blocks: ledger.blocks.iter().map(|block| BlockRow::of(block, &pools)).collect(),
            pools: pool::rows(node, &pools, &ledger),
        })
    }
}

impl Report for Overview {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{}", pool::table(&self.pools))?;
        let mut table = Table::new(["BLOCK", "NODE", "USED", "OF", "USE", "BORROWED", "RELEASED"]);
        for block in &self.blocks {
            table.row([
                block.cidr.to_string().into(),
                Cell::optional(block.node.as_ref()),
                Cell::number(block.used),
                Cell::number(block.slots),
                bar(block.used as u128, block.slots as u128).into(),
                Cell::number(block.borrowed),
                Cell::number(block.released),
            ]);
        }
        write!(out, "\n{table}")
    }
}

/// What `ipam show --block` shows.
#[derive(Debug, Serialize)]
struct Block {
    block: BlockRow,
    addresses: Vec<SlotRow>,
}

#[derive(Debug, Serialize)]
struct SlotRow {
    address: IpAddr,
    network: String,
    container_id: String,
    interface: String,
    namespace: Option<String>,
    pod: Option<String>,
    node: String,
    assigned_at: u64,
}

impl SlotRow {
    fn of(address: IpAddr, slot: &Slot) -> Self {
        Self {
            address,
            network: slot.attachment.network().to_owned(),
            container_id: slot.attachment.container_id().to_owned(),
            interface: slot.attachment.ifname().to_owned(),
            namespace: slot.pod.as_ref().map(|pod| pod.namespace.clone()),
            pod: slot.pod.as_ref().map(|pod| pod.name.clone()),
            node: slot.node.clone(),
            assigned_at: slot.assigned_at,
        }
    }

    fn pod(&self) -> Option<String> {
        let pod = self.pod.as_ref()?;
        let namespace = self.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        Some(namespace.map_or(pod.clone(), |namespace| format!("{namespace}/{pod}")))
    }

    fn attachment(&self) -> String {
        format!("{}/{}/{}", self.network, self.container_id, self.interface)
    }
}

impl Block {
    fn look(store: &Store, wanted: &IpNetwork) -> Result<Self, Failure> {
        let (pools, ledger) = (store.pools()?, store.ledger()?);
        let block = ledger.blocks.iter().find(|block| block.cidr == *wanted);
        let block = block.ok_or_else(|| Failure::Unknown {
            kind: "block",
            name: wanted.to_string(),
            list: "margayctl ipam show",
        })?;
        let addresses = block.taken.iter().map(|(ip, slot)| SlotRow::of(*ip, slot)).collect();
        Ok(Self { block: BlockRow::of(block, &pools), addresses })
    }
}

impl Report for Block {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let BlockRow { cidr, node, used, slots, .. } = &self.block;
        let node = node.as_deref().unwrap_or("nobody");
        writeln!(out, "{BOLD}{cidr}{BOLD:#}, block of {node}: {used} of {slots} in use")?;
        let mut table = Table::new(["ADDRESS", "POD", "ATTACHMENT", "NODE", "SINCE"]);
        for slot in &self.addresses {
            table.row([
                slot.address.to_string().into(),
                Cell::optional(slot.pod()),
                slot.attachment().into(),
                slot.node.clone().into(),
                Cell::number(age(slot.assigned_at)),
            ]);
        }
        write!(out, "{table}")
    }
}

/// What `ipam show ADDRESS` shows.
#[derive(Debug, Serialize)]
struct Address {
    address: IpAddr,
    /// `taken`, `free`, `reserved` (an end or the gateway of its pool), or `foreign` (of no pool).
    state: &'static str,
    pool: Option<IpNetwork>,
    block: Option<IpNetwork>,
    block_node: Option<String>,
    held_by: Option<SlotRow>,
    /// Attachments whose endpoints have the address, whoever holds it.
    endpoints: Vec<String>,
}

impl Address {
    fn look(store: &Store, address: IpAddr) -> Result<Self, Failure> {
        let (pools, ledger) = (store.pools()?, store.ledger()?);
        let pool = pools.iter().find(|pool| pool.cidr.contains(address));
        let block = block_of(&ledger, address);
        let slot = block.and_then(|block| block.taken.get(&address));
        let has = ledger.endpoints.iter().filter(|e| e.ips.iter().any(|ip| ip.ip() == address));
        Ok(Self {
            address,
            state: match (slot, pool) {
                (Some(_), _) => "taken",
                (None, None) => "foreign",
                (None, Some(pool)) if pool.hands_out(address) => "free",
                (None, Some(_)) => "reserved",
            },
            pool: pool.map(|pool| pool.cidr),
            block: block.map(|block| block.cidr),
            block_node: block.and_then(|block| Some(block.owner()?.to_owned())),
            held_by: slot.map(|slot| SlotRow::of(address, slot)),
            endpoints: has.map(|endpoint| endpoint.attachment.to_string()).collect(),
        })
    }
}

fn block_of(ledger: &Ledger, address: IpAddr) -> Option<&BlockEntry> {
    let holding = ledger.slot(address).map(|(block, _)| block);
    holding.or_else(|| ledger.blocks.iter().find(|block| block.cidr.contains(address)))
}

impl Report for Address {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{BOLD}{}{BOLD:#}: {}", self.address, self.state)?;
        let mut table = Table::new(["", ""]);
        let mut line = |heading: &str, value: Option<String>| {
            if let Some(value) = value {
                table.row([heading.into(), value.into()]);
            }
        };
        line("pool", self.pool.map(|pool| pool.to_string()));
        let node = self.block_node.as_deref().unwrap_or("nobody");
        line("block", self.block.map(|block| format!("{block} of {node}")));
        if let Some(slot) = &self.held_by {
            line("pod", slot.pod());
            line("held by", Some(slot.attachment()));
            line("on node", Some(slot.node.clone()));
            line("since", Some(age(slot.assigned_at)));
        }
        for endpoint in &self.endpoints {
            line("endpoint", Some(endpoint.clone()));
        }
        write!(out, "{table}")
    }
}
