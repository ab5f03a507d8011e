//! What a node's agent uses of the machine.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use margay_tests::cluster::{Member, UPLINK};
use margay_tests::traffic::Place;

/// As of one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    at: Instant,
    cpu_ms: f64,
    received_kib: f64,
}

/// Between two moments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) wall_ms: f64,
    pub(super) cpu_ms: f64,
    pub(super) received_kib: f64,
}

impl Usage {
    /// Of a node whose agent has not been started.
    pub(super) fn before_the_start(member: &Member) -> Result<Self> {
        Ok(Self { at: Instant::now(), cpu_ms: 0.0, received_kib: received_kib(member)? })
    }

    pub(super) fn of(member: &Member) -> Result<Self> {
        let (at, cpu_ms) = (Instant::now(), cpu_ms(member)?);
        Ok(Self { at, cpu_ms, received_kib: received_kib(member)? })
    }

    pub(super) fn since(&self, before: &Self) -> Used {
        Used {
            wall_ms: (self.at - before.at).as_secs_f64() * 1e3,
            cpu_ms: self.cpu_ms - before.cpu_ms,
            received_kib: self.received_kib - before.received_kib,
        }
    }
}

/// The largest resident set of the node's agent so far, MiB.
pub(super) fn peak_rss_mib(member: &Member) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid(member)?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix("kB")).context("VmHWM")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

fn pid(member: &Member) -> Result<u32> {
    member.agent_pid().context("no agent runs")
}

fn cpu_ms(member: &Member) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid(member)?))?;
    // Fields 14 and 15, counted from 1; the second is a name in parentheses.
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    let ticks: Vec<&str> = fields.split_whitespace().skip(11).take(2).collect();
    let ticks: u64 = ticks.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>()?;
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

fn received_kib(member: &Member) -> Result<f64> {
    let table = member.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(UPLINK)?.strip_prefix(':'));
    let bytes = line.and_then(|line| line.split_whitespace().next()).context(UPLINK)?;
    Ok(bytes.parse::<f64>()? / 1024.0)
}
