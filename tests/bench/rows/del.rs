//! How long a DEL takes, and how much of that is the kernel's.

use anyhow::Result;

use super::add::cycles;
use super::{CPU, Row, WALL, wall_and_cpu};
use crate::Effort;
use crate::peer::{Families, PLUGINS, Peer};
use crate::sheet::{Key, Limit, Sheet};
use crate::statistics::Statistic;

pub(super) const ROW: Row = Row {
    name: "del",
    title: "DEL, one pod at a time",
    method: "As with ADD: the whole process of the plugin. `bare veth` is the kernel's share: the deletion of the \
             pair over netlink.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let peers = [PLUGINS, &[Peer::Veth]].concat();
    for (peer, cycles) in cycles(&peers, Families::V4, effort.samples(200))? {
        wall_and_cpu(sheet, "", peer, cycles.iter().map(|cycle| &cycle.del));
    }
    for (metric, limit) in [(WALL, 1.0), (CPU, 0.5)] {
        let key = |peer| Key::new(metric, "", peer);
        let (margay, ptp) = (key(Peer::Margay), key(Peer::Ptp));
        sheet.goal(Statistic::Median, &margay, Limit::AtMost(limit), &ptp)?;
    }
    Ok(())
}
