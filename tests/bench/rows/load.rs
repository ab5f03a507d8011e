//! What a node's first ADD pays for the programs, and that no other ADD pays.

use std::fs;

use anyhow::{Context, Result, ensure};
use margay_datapath::Datapath;
use margay_tests::Node;
use serde_json::json;

use super::{Row, wall_and_cpu};
use crate::Effort;
use crate::execution::Execution;
use crate::peer::{Families, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "load",
    title: "Programs, loaded once per node",
    method: "The first ADD of a node and the next one. In the phase `dataplane` of margay's log line the \
             first one reads the object, makes the maps, has the programs verified and pins all of it; the \
             next one opens the pins, and the IDs of the pinned programs stay the same. `the verifier` is of \
             that what margay waits for `BPF_PROG_LOAD`, of both programs at once.",
    run,
};

const DATAPLANE: &str = "phase dataplane";
const VERIFIER: &str = "the verifier";
const CASES: [&str; 2] = ["first ADD", "next ADD"];

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let samples = effort.samples(20);
    let rounds = in_turns(&[Peer::Margay], |_, node, turn| {
        let mut rounds = Vec::new();
        for round in 0..samples {
            rounds.push(first_and_next(node, round)?);
            turn.pass();
        }
        Ok(rounds)
    })?;
    let rounds = &rounds[0].1;
    for (index, case) in CASES.into_iter().enumerate() {
        let adds = rounds.iter().map(|round| &round[index]);
        wall_and_cpu(sheet, case, Peer::Margay, adds.clone());
        let phase = |add: &Execution| {
            let phase = add.phases().into_iter().find(|(name, _)| name == "dataplane");
            Ok(phase.context("no phase `dataplane` in the log")?.1 / 1e3)
        };
        let phases = adds.map(phase).collect::<Result<Vec<_>>>()?;
        sheet.record(Key::new(DATAPLANE, case, Peer::Margay), Unit::Milliseconds, phases);
    }
    let verifier = rounds.iter().map(|[first, _]| Ok(first.logged("verifier_us")? / 1e3));
    let verifier = verifier.collect::<Result<Vec<_>>>()?;
    sheet.record(Key::new(VERIFIER, CASES[0], Peer::Margay), Unit::Milliseconds, verifier);
    let first = Key::new(DATAPLANE, CASES[0], Peer::Margay);
    sheet.absolute_goal(Statistic::Median, &first, Limit::AtMost(50.0))
}

/// Two ADDs on a node that has no pins yet: each round has a folder of its own for them.
fn first_and_next(node: &Node, round: usize) -> Result<[Execution; 2]> {
    let root = node.path("bpf").join(format!("round-{round}"));
    let mut network = Peer::Margay.network(node, Families::V4);
    network["bpffs_root"] = json!(root);
    let pods = ["first", "next"].map(|name| node.sandbox(name));
    let programs = || -> Result<_> {
        Ok(Datapath::open(&root)?.context("no pins after an ADD")?.program_ids())
    };
    let first = Peer::Margay.add(&pods[0], &network)?;
    let loaded = programs()?;
    let next = Peer::Margay.add(&pods[1], &network)?;
    ensure!(programs()? == loaded, "the next ADD loaded programs");
    for pod in &pods {
        Peer::Margay.del(pod, &network)?;
    }
    fs::remove_dir_all(root)?;
    Ok([first, next])
}
