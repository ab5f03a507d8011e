//! `margayctl datapath maps`.

use std::fmt;

use clap::Args;
use margay_datapath::{PinnedMap, pinned_maps};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, Report, Table, bar, bytes};

/// `datapath maps`.
#[derive(Debug, Args)]
pub(crate) struct Maps {
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(arguments: &Maps, node: &Node, format: Format) -> Result<(), Failure> {
    let root = node.settings()?.paths.bpffs_root;
    let look = async || {
        node.datapaths()?;
        let maps = pinned_maps(&root)?.into_iter().map(Row::from).collect();
        Ok(Pinned { root: root.display().to_string(), maps })
    };
    output::show_or_watch(&arguments.watched, format, look).await
}

/// What `datapath maps` shows.
#[derive(Debug, Serialize)]
struct Pinned {
    /// Root of the pins.
    root: String,
    maps: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    abi_version: u32,
    name: String,
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    max_entries: u32,
    memory_bytes: Option<u64>,
}

impl From<PinnedMap> for Row {
    fn from(map: PinnedMap) -> Self {
        let PinnedMap { abi_version, name, id, kind, key_bytes, value_bytes, .. } = map;
        let PinnedMap { entries, max_entries, memory_bytes, .. } = map;
        Self {
            abi_version,
            name,
            id,
            kind,
            key_bytes,
            value_bytes,
            entries,
            max_entries,
            memory_bytes,
        }
    }
}

impl Row {
    /// An array has all of its entries from the beginning.
    fn is_array(&self) -> bool {
        self.kind.ends_with("array")
    }
}

impl Report for Pinned {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut table = Table::new([
            "MAP", "VERSION", "ID", "TYPE", "KEY", "VALUE", "ENTRIES", "OF", "USE", "MEMORY",
        ]);
        for map in &self.maps {
            let fill = match map.is_array() {
                true => String::new(),
                false => bar(map.entries.into(), map.max_entries.into()),
            };
            table.row([
                map.name.clone().into(),
                Cell::number(map.abi_version),
                Cell::number(map.id),
                map.kind.clone().into(),
                Cell::number(format_args!("{} B", map.key_bytes)),
                Cell::number(format_args!("{} B", map.value_bytes)),
                Cell::number(map.entries),
                Cell::number(map.max_entries),
                fill.into(),
                Cell::number(map.memory_bytes.map_or("-".to_owned(), bytes)),
            ]);
        }
        write!(out, "{table}")
    }
}
