//! How many pods a node attaches in a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use margay_tests::Pod;
use serde_json::Value;

use super::Row;
use crate::Effort;
use crate::peer::{Families, PLUGINS, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "throughput",
    title: "Pods per second",
    method: "ADD of 64 sandboxes, so many at a time; a thread starts the next as soon as one of its own has \
             ended. Then DEL of all of them in the same way.",
    run,
};

const AT_A_TIME: [usize; 3] = [1, 4, 16];

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let (pods, rounds) = if effort.quick { (16, 2) } else { (64, 5) };
    let rates = in_turns(PLUGINS, |peer, node, turn| {
        let network = peer.network(node, Families::V4);
        let pods: Vec<_> = (0..pods).map(|index| node.sandbox(&format!("pod-{index}"))).collect();
        turn.pass();
        let mut rates = Vec::new();
        for how_many in AT_A_TIME {
            // The round before those that count loads programs and makes the bridge.
            for round in 0..=rounds {
                let add = rate(peer, &pods, "ADD", &network, how_many)?;
                let del = rate(peer, &pods, "DEL", &network, how_many)?;
                if round > 0 {
                    rates.push((how_many, add, del));
                }
                turn.pass();
            }
        }
        Ok(rates)
    })?;
    for (metric, is_add) in [("ADD", true), ("DEL", false)] {
        for how_many in AT_A_TIME {
            for (peer, rates) in &rates {
                let rates = rates.iter().filter(|(case, ..)| *case == how_many);
                let rates = rates.map(|(_, add, del)| if is_add { *add } else { *del });
                sheet.record(key(metric, how_many, *peer), Unit::PerSecond, rates.collect());
            }
        }
    }
    let at_sixteen = |peer| key("ADD", 16, peer);
    let (margay, ptp) = (at_sixteen(Peer::Margay), at_sixteen(Peer::Ptp));
    sheet.goal(Statistic::Median, &margay, Limit::AtLeast(1.5), &ptp)
}

fn key(metric: &str, how_many: usize, peer: Peer) -> Key {
    Key::new(metric, &format!("{how_many} at a time"), peer)
}

/// Executions per second.
fn rate(peer: Peer, pods: &[Pod<'_>], verb: &str, network: &Value, how_many: usize) -> Result<f64> {
    let started = Instant::now();
    at_a_time(how_many, pods, |pod| peer.execute(pod, verb, network).map(drop))?;
    Ok(pods.len() as f64 / started.elapsed().as_secs_f64())
}

/// Does `work` with every pod, so many at a time. Threads inherit the node's namespaces.
pub(super) fn at_a_time<'node>(
    how_many: usize,
    pods: &[Pod<'node>],
    work: impl Fn(&Pod<'node>) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let share = || pods.get(next.fetch_add(1, Ordering::Relaxed)).map(&work);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..how_many)
            .map(|_| scope.spawn(|| std::iter::from_fn(share).collect::<Result<()>>()))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}
