//! Whether an address takes longer the more of them are out.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use margay_datastore::{AssignRequest, Attachment, Ipam, Pool, Sqlite, Store};
use margay_tests::node::{plugin_directory, reference_plugin_directory};
use margay_tests::{Invocation, Node, Pod};
use serde_json::{Value, json};

use super::{Row, WALL};
use crate::Effort;
use crate::execution::Execution;
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "ipam",
    title: "An address, with many out",
    method: "The whole process of the IPAM plugin alone: ADD for one IPv4 address, and DEL. That many addresses of a \
             /16 are out; each number has a node of its own, so that they take turns. host-local, which reads a folder \
             of so many files, is measured less often.",
    run,
};

const NETWORK: &str = "podnet";
const DATABASE: &str = "margay.db";

/// An IPAM plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugin {
    Margay,
    HostLocal,
}

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let sizes: &[u32] = if effort.quick { &[10, 100] } else { &[10, 10_000, 60_000] };
    let plugins = [Plugin::Margay, Plugin::HostLocal];
    let players: Vec<(Plugin, u32)> =
        plugins.iter().flat_map(|plugin| sizes.iter().map(|size| (*plugin, *size))).collect();
    let measured = in_turns(&players, |(plugin, size), node, turn| {
        plugin.fill(node, size)?;
        let pod = node.sandbox("pod");
        turn.pass();
        let mut cycles = Vec::new();
        for round in 0..effort.samples(plugin.samples()) {
            let id = format!("one-more-{round}");
            let execute =
                |verb| Execution::of(&plugin.invocation(&pod, verb).env("CNI_CONTAINERID", &id));
            cycles.push((execute("ADD")?, execute("DEL")?));
            turn.pass();
        }
        Ok(cycles)
    })?;
    let key = |verb: &str, size: u32, plugin: Plugin| {
        Key::new(&format!("{WALL} of {verb}"), &format!("{size} addresses"), plugin.name())
    };
    for (verb, is_add) in [("ADD", true), ("DEL", false)] {
        for size in sizes {
            for ((plugin, _), cycles) in measured.iter().filter(|((_, of), _)| of == size) {
                let times =
                    cycles.iter().map(|(add, del)| if is_add { add } else { del }.wall_ms());
                sheet.record(key(verb, *size, *plugin), Unit::Milliseconds, times.collect());
            }
        }
    }
    for verb in ["ADD", "DEL"] {
        let [few, many] =
            [sizes[0], sizes[sizes.len() - 1]].map(|size| key(verb, size, Plugin::Margay));
        sheet.goal(Statistic::Median, &many, Limit::AtMost(1.2), &few)?;
    }
    Ok(())
}

impl Plugin {
    fn name(self) -> &'static str {
        match self {
            Self::Margay => "margay-ipam",
            Self::HostLocal => "host-local",
        }
    }

    fn samples(self) -> usize {
        match self {
            Self::Margay => 100,
            Self::HostLocal => 10,
        }
    }

    fn invocation(self, pod: &Pod<'_>, verb: &str) -> Invocation {
        let directory = match self {
            Self::Margay => plugin_directory(),
            Self::HostLocal => reference_plugin_directory(),
        };
        let plugin = directory.join(self.name()).display().to_string();
        let invocation = pod.invocation_of(&plugin, verb, &self.network(pod.node()));
        invocation.env("CNI_PATH", &directory.display().to_string())
    }

    fn network(self, node: &Node) -> Value {
        let ipam = match self {
            Self::Margay => json!({
                "type": self.name(),
                "nodename": "node",
                "state_dir": node.path("state"),
                "pools": [{"cidr": "10.244.0.0/16"}],
            }),
            Self::HostLocal => json!({
                "type": self.name(),
                "dataDir": node.path("state"),
                "ranges": [[{"subnet": "10.244.0.0/16"}]],
            }),
        };
        json!({"cniVersion": "1.0.0", "name": NETWORK, "type": "ptp", "ipam": ipam})
    }

    /// Hands `size` addresses out, without a process for each.
    fn fill(self, node: &Node, size: u32) -> Result<()> {
        let first = node.sandbox("first");
        let first = || Execution::of(&self.invocation(&first, "ADD")).context("the first ADD");
        match self {
            Self::Margay => {
                fill_datastore(node, size - 1)?;
                first()?;
            }
            Self::HostLocal => {
                first()?;
                fill_folder(node, size - 1)?;
            }
        }
        Ok(())
    }
}

/// As margay-ipam assigns them, one attachment after the other, in a database in memory: the log of
/// so many writes would be synchronised hundreds of times.
fn fill_datastore(node: &Node, size: u32) -> Result<()> {
    let draft = tempfile::Builder::new().prefix("margay-test-").tempdir_in("/dev/shm")?;
    let store = Store::new(Sqlite::open(&draft.path().join(DATABASE))?);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let ipam = Ipam::new(&store, "node", boot_id.trim());
    for index in 0..size {
        ipam.assign(&AssignRequest {
            attachment: Attachment::new(NETWORK, format!("{index:064x}"), "eth0")?,
            pod: None,
            netns: Some(format!("/var/run/netns/cni-{index:x}")),
            pools: vec![Pool::new("10.244.0.0/16".parse()?)],
            ipv4: true,
            ipv6: false,
            requested: Vec::new(),
            strict_affinity: false,
        })?;
    }
    store.upkeep()?;
    drop(store);
    for name in [DATABASE.to_owned(), format!("{DATABASE}-wal")] {
        let from = draft.path().join(&name);
        if from.exists() {
            fs::copy(from, node.path("state").join(name))?;
        }
    }
    Ok(())
}

/// As host-local writes them: a file for each address, and one for the last that was given.
fn fill_folder(node: &Node, size: u32) -> Result<()> {
    let folder = node.path("state").join(NETWORK);
    let address = |index: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 3)) + index);
    for index in 0..size {
        fs::write(folder.join(address(index).to_string()), format!("{index:064x}\r\neth0"))?;
    }
    fs::write(folder.join("last_reserved_ip.0"), address(size - 1).to_string())?;
    Ok(())
}
