//! The rows of the table, each a file with one function.

mod add;
mod datagrams;
mod del;
mod etcd;
mod first;
mod growth;
mod ipam;
mod load;
mod memory;
mod nodes;
mod packets;
mod programs;
mod rules;
mod scale;
mod stream;
mod throughput;
mod transactions;

use anyhow::Result;

use crate::Effort;
use crate::execution::Execution;
use crate::peer::Peer;
use crate::sheet::{Key, Sheet, Unit};

/// Something that is measured on margay and its peers.
pub(crate) struct Row {
    /// What it is called on the command line and in file names.
    pub(crate) name: &'static str,
    /// Its heading.
    pub(crate) title: &'static str,
    /// How it is measured, for whoever reads the numbers.
    pub(crate) method: &'static str,
    /// Measures it, and writes into the sheet what it saw and the goals.
    pub(crate) run: fn(Effort, &mut Sheet) -> Result<()>,
}

/// In the order of the page. To measure one more thing, add a file beside this one and its row here.
pub(crate) const ROWS: &[Row] = &[
    add::ROW,
    del::ROW,
    throughput::ROW,
    growth::ROW,
    ipam::ROW,
    etcd::ROW,
    scale::ROW,
    load::ROW,
    memory::ROW,
    first::ROW,
    stream::ROW,
    datagrams::ROW,
    transactions::ROW,
    nodes::ROW,
    rules::ROW,
    programs::ROW,
];

/// Records how long executions took and what they used of the processors, where they are processes.
fn wall_and_cpu<'a>(
    sheet: &mut Sheet,
    case: &str,
    peer: Peer,
    executions: impl Iterator<Item = &'a Execution> + Clone,
) {
    let (wall, cpu) = (Key::new(WALL, case, peer), Key::new(CPU, case, peer));
    sheet.record(wall, Unit::Milliseconds, executions.clone().map(Execution::wall_ms).collect());
    if peer != Peer::Veth {
        sheet.record(cpu, Unit::Milliseconds, executions.map(Execution::cpu_ms).collect());
    }
}

const WALL: &str = "wall time";
const CPU: &str = "CPU time";
