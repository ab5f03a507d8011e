//! How many small requests TCP carries, on one connection and on one for each.

use anyhow::Result;

use super::Row;
use super::packets::{self, Case, Scale};
use crate::Effort;
use crate::sheet::{Sheet, Unit};
use crate::traffic::{Pattern, Placement, Traffic};

pub(super) const ROW: Row = Row {
    name: "transactions",
    title: "TCP request-response and connect-request-response, pod to pod",
    method: "A request of 64 bytes, and an answer of as many, one at a time: all on one connection, or on a \
             new one for each, which the server closes and whose tuple no table knows. Both ends are on one processor: on two, it takes \
             longer to wake the other one than to do all the rest.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let mut cases = Vec::new();
    for (rate, cpu, pattern) in [
        ("request-response", "processor time per request-response", Pattern::Exchanges),
        (
            "connect-request-response",
            "processor time per connect-request-response",
            Pattern::Connections,
        ),
    ] {
        for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
            let traffic = Traffic { pattern, placement: Placement::Together, ipv4 };
            cases.push(Case { rate, cpu, name: family.to_owned(), traffic });
        }
    }
    let peers = packets::watch(effort, &cases, 15)?;
    let scale = Scale {
        rate: (Unit::PerSecond, 1.0),
        cpu: (Unit::Microseconds, 1e6),
        rate_limit: 0.97,
        cpu_limit: 1.05,
    };
    packets::record(sheet, &cases, &peers, &scale)
}
