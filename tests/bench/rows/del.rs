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
    for (metric, limit, peer) in
        [(WALL, 1.0, Peer::Ptp), (WALL, 1.2, Peer::Veth), (CPU, 0.5, Peer::Ptp)]
    {
        let (margay, other) = (Key::new(metric, "", Peer::Margay), Key::new(metric, "", peer));
        sheet.goal(Statistic::Median, &margay, Limit::AtMost(limit), &other)?;
    }
    sheet.note(
        "Whoever deletes a veth pair waits for an RCU grace period (`rcu_barrier` in `netdev_run_todo`), from either \
         end and with or without programs: most of what every plugin takes. On idle processors it takes longer than \
         on such as wake now and then, as they do under a Go plugin's own threads.",
    );
    Ok(())
}
