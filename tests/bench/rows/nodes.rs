//! How much pods of two nodes carry between them.

use std::fmt::{self, Display};

use anyhow::Result;
use margay_tests::Neighbours;
use margay_tests::neighbours::Way;
use margay_tests::pod::address;
use serde_json::json;

use super::Row;
use super::packets::WINDOW;
use crate::Effort;
use crate::peer::{Pair, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::traffic::{self, Pattern, Placement, Seen, Traffic};
use crate::turns::in_turns_on;

pub(super) const ROW: Row = Row {
    name: "nodes",
    title: "Between two nodes",
    method: "Two nodes with a veth pair between them, and a pod on each, whose packets take VXLAN or go as they are: past \
             both stacks by margay's programs, or by routes alone (margay linux); without any rule of netfilter, and with one \
             that asks conntrack, as kube-proxy makes it. Routes lead into VXLAN by a device with a table, as flannel makes it and \
             margay. TCP fills one connection, with CUBIC as congestion control; requests of 64 bytes are answered \
             on one connection, or on a new one for each; UDP carries 64 bytes at a time.",
    run,
};

/// A peer and the way between its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    peer: Peer,
    way: Way,
    /// Whether the stacks have a rule that asks conntrack, as kube-proxy makes it.
    tracks: bool,
}

/// Margay, and then what it is held against.
const SETTINGS: [Setting; 8] = [
    Setting { peer: Peer::Margay, way: Way::Vxlan, tracks: false },
    Setting { peer: Peer::Linux, way: Way::Vxlan, tracks: false },
    Setting { peer: Peer::Margay, way: Way::Plain, tracks: false },
    Setting { peer: Peer::Linux, way: Way::Plain, tracks: false },
    Setting { peer: Peer::Margay, way: Way::Vxlan, tracks: true },
    Setting { peer: Peer::Linux, way: Way::Vxlan, tracks: true },
    Setting { peer: Peer::Margay, way: Way::Plain, tracks: true },
    Setting { peer: Peer::Linux, way: Way::Plain, tracks: true },
];

impl Setting {
    /// Whether packets look the same between the nodes, and meet the same rules.
    fn is_like(&self, other: &Self) -> bool {
        self.tracks == other.tracks && self.way == other.way
    }
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.way == Way::Plain { "plain" } else { "VXLAN" })?;
        f.write_str(if self.tracks { ", conntrack" } else { "" })
    }
}

/// What is measured, what it is called, and what one of it is.
const CASES: [(&str, Pattern, bool, Unit, f64); 6] = [
    ("TCP stream, IPv4", Pattern::Stream { flows: 1 }, true, Unit::GigabitsPerSecond, 1e9),
    ("request-response, IPv4", Pattern::Exchanges, true, Unit::PerSecond, 1.0),
    ("request-response, IPv6", Pattern::Exchanges, false, Unit::PerSecond, 1.0),
    ("connect-request-response, IPv4", Pattern::Connections, true, Unit::PerSecond, 1.0),
    ("connect-request-response, IPv6", Pattern::Connections, false, Unit::PerSecond, 1.0),
    ("UDP packets, IPv4", Pattern::Datagrams, true, Unit::PerSecond, 1.0),
];

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let rounds = effort.samples(6);
    let make = |setting: Setting| match setting.peer {
        Peer::Margay => Neighbours::connected(setting.way),
        _ => Neighbours::new(setting.way),
    };
    let seen = in_turns_on(&SETTINGS, make, |setting, nodes, turn| {
        let pair = pair(setting, nodes);
        traffic::prepare(&pair)?;
        for number in [0, 1] {
            if setting.tracks {
                nodes.enter(number, || nodes.node(number).drop_invalid());
            }
        }
        turn.pass();
        let mut seen: Vec<Vec<Seen>> = CASES.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for ((_, pattern, ipv4, ..), seen) in CASES.iter().zip(&mut seen) {
                let placement = match pattern {
                    Pattern::Stream { .. } | Pattern::Datagrams => Placement::Apart,
                    _ => Placement::Together,
                };
                let traffic = Traffic { pattern: *pattern, placement, ipv4: *ipv4 };
                seen.push(traffic.watch(&pair, WINDOW)?);
                turn.pass();
            }
        }
        Ok(seen)
    })?;
    for (index, (metric, .., unit, one)) in CASES.iter().enumerate() {
        for (setting, seen) in &seen {
            let rates = seen[index].iter().map(|seen| seen.rate / one).collect();
            sheet.record(key(metric, *setting), *unit, rates);
        }
        let margays = SETTINGS.iter().filter(|setting| setting.peer == Peer::Margay);
        for margay in margays {
            let others = SETTINGS.iter().filter(|setting| setting.peer == Peer::Linux);
            for other in others.filter(|other| margay.is_like(other)) {
                let limit = if other.way == Way::Vxlan { 1.2 } else { 1.0 };
                let [margay, other] = [margay, other].map(|setting| key(metric, *setting));
                sheet.goal(Statistic::Median, &margay, Limit::AtLeast(limit), &other)?;
            }
        }
    }
    Ok(())
}

fn key(metric: &str, setting: Setting) -> Key {
    Key::new(metric, &setting.to_string(), setting.peer)
}

/// A client on the first node and a server on the second.
fn pair(setting: Setting, nodes: &Neighbours) -> Pair<'_> {
    let dataplane = if setting.peer == Peer::Margay { "ebpf" } else { "linux" };
    let pod = |number, name| {
        nodes.pod_with(number, name, |network| {
            network["mtu"] = json!(setting.way.mtu());
            network["dataplane"] = json!(dataplane);
            network["log_level"] = json!("info");
        })
    };
    let ((client, _), (server, of_server)) = (pod(0, "client"), pod(1, "server"));
    let [server_v4, server_v6] = [true, false].map(|ipv4| address(&of_server, ipv4));
    Pair { client, server, server_v4, server_v6 }
}
