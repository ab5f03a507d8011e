//! How many small packets UDP carries.

use anyhow::Result;

use super::Row;
use super::packets::{self, Case, Scale};
use crate::Effort;
use crate::sheet::{Sheet, Unit};
use crate::traffic::{Pattern, Placement, Traffic};

pub(super) const ROW: Row = Row {
    name: "datagrams",
    title: "Small UDP packets, pod to pod",
    method: "A client on one processor sends packets of 64 bytes to a server on another, one by one and as \
             fast as it can. The rate is of those that arrive.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let case = |(family, ipv4): (&str, bool)| Case {
        rate: "packets",
        cpu: "processor time per packet",
        name: family.to_owned(),
        traffic: Traffic { pattern: Pattern::Datagrams, placement: Placement::Apart, ipv4 },
    };
    let cases = [("IPv4", true), ("IPv6", false)].map(case);
    let peers = packets::watch(effort, &cases, 15)?;
    let scale = Scale {
        rate: (Unit::PerSecond, 1.0),
        cpu: (Unit::Microseconds, 1e6),
        rate_limit: 0.98,
        cpu_limit: 1.05,
    };
    packets::record(sheet, &cases, &peers, &scale)
}
