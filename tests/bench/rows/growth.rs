//! Whether an ADD takes longer the more pods there are.

use anyhow::Result;

use super::throughput::at_a_time;
use super::{Row, WALL};
use crate::Effort;
use crate::execution::Execution;
use crate::peer::{Families, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "growth",
    title: "ADD on a node with many pods",
    method: "So many pods are attached, each with a namespace of its own, and stay; then one more comes and goes, \
             again and again. Half of that on the way up and half on the way back down, so that what changes on the \
             machine meanwhile is nobody's. `--large` goes on to 4,000.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let levels: &[usize] = match (effort.quick, effort.large) {
        (true, _) => &[2, 8],
        (false, false) => &[10, 250, 1000],
        (false, true) => &[10, 250, 1000, 4000],
    };
    let samples = effort.samples(25);
    let peers = [Peer::Margay, Peer::Ptp];
    let measured = in_turns(&peers, |peer, node, turn| {
        let network = peer.network(node, Families::V4);
        let one_more = node.sandbox("one-more");
        let mut present = Vec::new();
        let mut levels_adds: Vec<Vec<Execution>> = levels.iter().map(|_| Vec::new()).collect();
        for place in (0..levels.len()).chain((0..levels.len()).rev()) {
            let (level, before) = (levels[place], present.len());
            present.extend((before..level).map(|index| node.sandbox(&format!("pod-{index}"))));
            let (change, pods) = if before < level { ("ADD", before) } else { ("DEL", level) };
            at_a_time(4, &present[pods..], |pod| peer.execute(pod, change, &network).map(drop))?;
            present.truncate(level);
            turn.pass();
            for _ in 0..samples {
                let id = format!("one-more-{}", levels_adds[place].len());
                let execute = |verb| {
                    let invocation = peer.invocation(&one_more, verb, &network);
                    Execution::of(&invocation.env("CNI_CONTAINERID", &id))
                };
                levels_adds[place].push(execute("ADD")?);
                execute("DEL")?;
                turn.pass();
            }
        }
        Ok(levels_adds)
    })?;
    let key = |level: usize, peer| Key::new(WALL, &format!("{level} pods"), peer);
    for (index, &level) in levels.iter().enumerate() {
        for (peer, adds) in &measured {
            let adds = adds[index].iter().map(Execution::wall_ms).collect();
            sheet.record(key(level, *peer), Unit::Milliseconds, adds);
        }
    }
    let (fewest, most) = (levels[0], levels[levels.len() - 1]);
    let (few, many) = (key(fewest, Peer::Margay), key(most, Peer::Margay));
    sheet.goal(Statistic::Median, &many, Limit::AtMost(1.2), &few)
}
