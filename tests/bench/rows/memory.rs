//! How much memory an ADD takes for a moment, and the maps for good.

use std::fs;

use anyhow::{Context, Result};
use margay_tests::Node;
use serde_json::Value;

use super::Row;
use crate::Effort;
use crate::execution;
use crate::peer::{Families, PLUGINS, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "memory",
    title: "Memory",
    method: "Largest resident set of an ADD, of its largest process; it counts what the process has in \
             common with others, such as the C library. Of the pinned maps, what the kernel says in \
             `fdinfo` with `max_pods` and `max_flows` as they are by default, empty.",
    run,
};

const RSS: &str = "peak resident set of an ADD";
const MAPS: &str = "memory of the maps";

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let samples = effort.samples(20);
    let peers = in_turns(PLUGINS, |peer, node, turn| {
        let network = peer.network(node, Families::Both);
        let mut sizes = Vec::new();
        // The node's first ADD, which loads the programs, comes first.
        for _ in 0..=samples {
            sizes.push(peak_rss_mib(peer, node, &network)?);
            turn.pass();
        }
        let maps = if peer == Peer::Margay { maps(node)? } else { Vec::new() };
        Ok((sizes, maps))
    })?;
    for (peer, (sizes, maps)) in peers {
        if peer == Peer::Margay {
            sheet.record(Key::new(RSS, "first ADD", peer), Unit::Mebibytes, sizes[..1].to_vec());
        }
        sheet.record(Key::new(RSS, "", peer), Unit::Mebibytes, sizes[1..].to_vec());
        for (map, mebibytes) in maps {
            sheet.record(Key::new(MAPS, &map, peer), Unit::Mebibytes, vec![mebibytes]);
        }
    }
    for case in ["first ADD", ""] {
        let margay = Key::new(RSS, case, Peer::Margay);
        sheet.absolute_goal(Statistic::Median, &margay, Limit::AtMost(12.0))?;
    }
    Ok(())
}

fn peak_rss_mib(peer: Peer, node: &Node, network: &Value) -> Result<f64> {
    let pod = node.sandbox("pod");
    let bench = std::env::current_exe()?.display().to_string();
    let add = peer.invocation(&pod, "ADD", network).through(&bench, &[execution::LAUNCH]);
    let kib = execution::Execution::of(&add).context("ADD")?.launched_peak_rss_kib()?;
    peer.del(&pod, network)?;
    Ok(kib as f64 / 1024.0)
}

/// The pinned maps with the memory that the kernel has for them, MiB.
fn maps(node: &Node) -> Result<Vec<(String, f64)>> {
    let folder = node.bpffs_root().join(margay_abi::ABI_VERSION.to_string()).join("maps");
    let mut maps = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("a pin's name")?.display().to_string();
        let shown =
            node.run(&["bpftool", "-j", "map", "show", "pinned", &path.display().to_string()]);
        let shown: Value = serde_json::from_str(&shown)?;
        let bytes = shown["bytes_memlock"].as_f64().context("bytes_memlock")?;
        maps.push((name, bytes / 1024.0 / 1024.0));
    }
    maps.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(maps)
}
