//! How much TCP carries.

use anyhow::Result;

use super::Row;
use super::packets::{self, Case, Scale};
use crate::Effort;
use crate::sheet::{Sheet, Unit};
use crate::traffic::{Pattern, Placement, Traffic};

pub(super) const ROW: Row = Row {
    name: "stream",
    title: "TCP stream, pod to pod",
    method: "Clients on one processor fill one or eight connections to servers on another. Throughput is of \
             what arrives in 0.3 seconds, with CUBIC as congestion control.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let mut cases = Vec::new();
    for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
        for (name, flows) in [("1 flow", 1), ("8 flows", 8)] {
            cases.push(Case {
                rate: "throughput",
                cpu: "processor time per gigabit",
                name: format!("{family}, {name}"),
                traffic: Traffic {
                    pattern: Pattern::Stream { flows },
                    placement: Placement::Apart,
                    ipv4,
                },
            });
        }
    }
    let peers = packets::watch(effort, &cases, 11)?;
    let scale = Scale {
        rate: (Unit::GigabitsPerSecond, 1e9),
        cpu: (Unit::Milliseconds, 1e9 * 1e3),
        rate_limit: 0.98,
        cpu_limit: 1.05,
    };
    packets::record(sheet, &cases, &peers, &scale)
}
