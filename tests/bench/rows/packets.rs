//! What the rows about packets have in common: pods that talk, and goals beside a bare veth pair.

use std::time::Duration;

use anyhow::Result;

use crate::Effort;
use crate::peer::{PEERS, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::traffic::{self, Seen, Traffic};
use crate::turns::in_turns;

/// One kind of traffic, and what it is called in tables.
pub(super) struct Case {
    /// Of the rate.
    pub(super) rate: &'static str,
    /// Of the processor time.
    pub(super) cpu: &'static str,
    pub(super) name: String,
    pub(super) traffic: Traffic,
}

/// How much more than the kernel's own share a packet may cost where that alone is beyond a goal.
pub(super) const KERNELS_SHARE: f64 = 1.2;

/// How long each look is. Rather many short ones than few long ones: what disturbs this machine lasts
/// for seconds, and a pair has to be within it or without it.
pub(super) const WINDOW: Duration = Duration::from_millis(300);

/// Lets all peers have all kinds of traffic, in turns, and returns what was seen, case by case.
pub(super) fn watch(
    effort: Effort,
    cases: &[Case],
    rounds: usize,
) -> Result<Vec<(Peer, Vec<Vec<Seen>>)>> {
    let rounds = effort.samples(rounds);
    let peers = [PEERS, &[Peer::Redirect]].concat();
    in_turns(&peers, |peer, node, turn| {
        let pair = peer.pair(node)?;
        traffic::prepare(&pair)?;
        turn.pass();
        let mut seen: Vec<Vec<Seen>> = cases.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (case, seen) in cases.iter().zip(&mut seen) {
                seen.push(case.traffic.watch(&pair, WINDOW)?);
                turn.pass();
            }
        }
        Ok(seen)
    })
}

/// How a row's numbers are written down, and its goals beside a bare veth pair.
pub(super) struct Scale {
    /// Of the rate, with the number of counted things in one of it.
    pub(super) rate: (Unit, f64),
    /// Of the processor time, with what a second for each counted thing is in it.
    pub(super) cpu: (Unit, f64),
    pub(super) rate_limit: f64,
    pub(super) cpu_limit: f64,
}

/// Records what was seen, and judges margay by it.
pub(super) fn record(
    sheet: &mut Sheet,
    cases: &[Case],
    peers: &[(Peer, Vec<Vec<Seen>>)],
    scale: &Scale,
) -> Result<()> {
    let (rate_unit, per_rate) = scale.rate;
    let (cpu_unit, per_second) = scale.cpu;
    for (index, case) in cases.iter().enumerate() {
        for (peer, seen) in peers {
            let rates = seen[index].iter().map(|seen| seen.rate / per_rate).collect();
            sheet.record(Key::new(case.rate, &case.name, *peer), rate_unit, rates);
        }
    }
    for (index, case) in cases.iter().enumerate() {
        for (peer, seen) in peers {
            let times = seen[index].iter().map(|seen| seen.cpu * per_second).collect();
            sheet.record(Key::new(case.cpu, &case.name, *peer), cpu_unit, times);
        }
    }
    for case in cases {
        let key = |peer: Peer| Key::new(case.rate, &case.name, peer);
        let margay = key(Peer::Margay);
        let limit = Limit::AtLeast(scale.rate_limit);
        sheet.goal(Statistic::Median, &margay, limit, &key(Peer::Veth))?;
        let limit = Limit::AtLeast(1.0 / KERNELS_SHARE);
        sheet.goal(Statistic::Median, &margay, limit, &key(Peer::Redirect))?;
        for other in [Peer::Linux, Peer::Ptp, Peer::Bridge] {
            sheet.goal(Statistic::Median, &margay, Limit::AtLeast(1.0), &key(other))?;
        }
        let key = |peer: Peer| Key::new(case.cpu, &case.name, peer);
        let limit = Limit::AtMost(scale.cpu_limit);
        sheet.goal(Statistic::Median, &key(Peer::Margay), limit, &key(Peer::Veth))?;
        let limit = Limit::AtMost(KERNELS_SHARE);
        sheet.goal(Statistic::Median, &key(Peer::Margay), limit, &key(Peer::Redirect))?;
    }
    Ok(())
}
