//! What it costs to keep the records in etcd.

use anyhow::Result;
use margay_datastore::testing::etcd::EtcdCluster;
use margay_tests::Node;
use margay_tests::node::on_etcd;
use serde_json::Value;

use super::add::Cycle;
use super::{CPU, Row, WALL};
use crate::Effort;
use crate::execution::Execution;
use crate::peer::{Families, Peer};
use crate::sheet::{Key, Sheet, Unit};
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "etcd",
    title: "ADD and DEL with the records in SQLite and in etcd",
    method: "As with ADD and DEL: the whole process of the plugin, which connects anew each time. etcd is one \
             member on this machine's loopback, whose disk it shares; a network adds its own time to each request.",
    run,
};

/// Where the records are.
#[derive(Clone, Copy, Debug)]
enum Records {
    Sqlite,
    Etcd,
    EtcdTls,
}

impl Records {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Etcd => "etcd",
            Self::EtcdTls => "etcd, TLS",
        }
    }

    fn cluster(self) -> Option<EtcdCluster> {
        match self {
            Self::Sqlite => None,
            Self::Etcd => Some(EtcdCluster::start()),
            Self::EtcdTls => Some(EtcdCluster::start_with_tls()),
        }
    }
}

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    const WARM_UP: usize = 2;
    let samples = effort.samples(100);
    let records = [Records::Sqlite, Records::Etcd, Records::EtcdTls];
    let measured = in_turns(&records, |records, node, turn| {
        let cluster = records.cluster();
        let network = network(node, cluster.as_ref());
        let pod = node.sandbox("pod");
        let mut cycles = Vec::new();
        for round in 0..WARM_UP + samples {
            let id = format!("pod-{round}");
            let execute = |verb| {
                let invocation = Peer::Margay.invocation(&pod, verb, &network);
                Execution::of(&invocation.env("CNI_CONTAINERID", &id))
            };
            let cycle = Cycle { add: execute("ADD")?, del: execute("DEL")? };
            if round >= WARM_UP {
                cycles.push(cycle);
            }
            turn.pass();
        }
        Ok(cycles)
    })?;
    for (records, cycles) in measured {
        let (adds, dels): (Vec<_>, Vec<_>) =
            cycles.into_iter().map(|Cycle { add, del }| (add, del)).unzip();
        for (verb, executions) in [("ADD", adds), ("DEL", dels)] {
            let of = |measure: fn(&Execution) -> f64| executions.iter().map(measure).collect();
            let key = |metric| Key::new(metric, verb, records.name());
            sheet.record(key(WALL), Unit::Milliseconds, of(Execution::wall_ms));
            sheet.record(key(CPU), Unit::Milliseconds, of(Execution::cpu_ms));
        }
    }
    Ok(())
}

fn network(node: &Node, cluster: Option<&EtcdCluster>) -> Value {
    let network = Peer::Margay.network(node, Families::V4);
    match cluster {
        Some(cluster) => on_etcd(network, cluster),
        None => network,
    }
}
