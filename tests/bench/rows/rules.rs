//! What the rules of a node's netfilter cost pods that talk to each other.

use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use margay_tests::Node;
use margay_tests::kube_proxy::{KubeProxy, Mode, Service};
use margay_tests::service::Protocol;

use super::Row;
use super::packets::KERNELS_SHARE;
use crate::Effort;
use crate::peer::Peer;
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::traffic::{self, Pattern, Placement, Traffic};
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "rules",
    title: "Under the rules of kube-proxy",
    method: "The same traffic over IPv4 on nodes with so many iptables rules in the shape of kube-proxy's, five to \
             a Service, all nodes in turns. The stack walks the chain of all Services once for each connection \
             that begins, and finds what is established by conntrack. The last node has rules in \
             FORWARD, as firewalls write them, which the stack walks for each packet. `bare redirect`, without \
             rules, is how much the kernel can carry at all. Both ends are on one processor, so that a rate is \
             what all of the work costs: on two, nodes without any rules differ by a fifth from each other.",
    run,
};

/// How long each look is: short, so that those of all nodes are close to each other.
const WINDOW: Duration = Duration::from_millis(100);

/// What a node has in its netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    KubeProxy(usize),
    Forward(usize),
}

const NONE: Rules = Rules::KubeProxy(0);
const MANY: Rules = Rules::KubeProxy(5000);
const FIREWALL: Rules = Rules::Forward(5000);
const RULES: [Rules; 5] = [NONE, Rules::KubeProxy(1000), MANY, Rules::KubeProxy(20_000), FIREWALL];
const PEERS: [Peer; 2] = [Peer::Margay, Peer::Linux];

/// What is measured, in which unit, and how many counted things make one of it.
const CASES: [(&str, Pattern, Placement, Unit, f64); 4] = [
    (
        "throughput of one stream",
        Pattern::Stream { flows: 1 },
        Placement::Together,
        Unit::GigabitsPerSecond,
        1e9,
    ),
    ("small UDP packets", Pattern::Datagrams, Placement::Together, Unit::PerSecond, 1.0),
    ("request-response", Pattern::Exchanges, Placement::Together, Unit::PerSecond, 1.0),
    ("connect-request-response", Pattern::Connections, Placement::Together, Unit::PerSecond, 1.0),
];

/// Those of the cases in which the stack walks rules all the time: by the rules on the node.
const WALKED: [(&str, Rules); 3] = [
    ("connect-request-response", MANY),
    ("request-response", FIREWALL),
    ("small UDP packets", FIREWALL),
];

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KubeProxy(rules) => write!(f, "{rules} rules"),
            Self::Forward(rules) => write!(f, "{rules} in FORWARD"),
        }
    }
}

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let mut players: Vec<_> =
        RULES.iter().flat_map(|rules| PEERS.map(|peer| (peer, *rules))).collect();
    players.push((Peer::Redirect, NONE));
    let measured = in_turns(&players, |(peer, rules), node, turn| {
        // The goals are about small differences between margay's nodes, and large ones to others.
        let rounds = effort.samples(if peer == Peer::Linux { 7 } else { 21 });
        let pair = peer.pair(node)?;
        traffic::prepare(&pair)?;
        rules.write(node)?;
        turn.pass();
        let mut rates = CASES.map(|_| Vec::new());
        for _ in 0..rounds {
            for ((_, pattern, placement, ..), rates) in CASES.iter().zip(&mut rates) {
                let traffic = Traffic { pattern: *pattern, placement: *placement, ipv4: true };
                rates.push(traffic.watch(&pair, WINDOW)?.rate);
                turn.pass();
            }
        }
        Ok(rates)
    })?;
    for (index, (metric, _, _, unit, scale)) in CASES.iter().enumerate() {
        for ((peer, rules), rates) in &measured {
            let rates = rates[index].iter().map(|rate| rate / scale).collect();
            sheet.record(key(metric, *rules, *peer), *unit, rates);
        }
    }
    for (metric, ..) in CASES {
        let unruled = key(metric, NONE, Peer::Margay);
        for rules in &RULES[1..] {
            let ruled = key(metric, *rules, Peer::Margay);
            sheet.goal(Statistic::Median, &ruled, Limit::AtLeast(0.97), &unruled)?;
        }
    }
    for (metric, rules) in WALKED {
        let [margay, linux] = PEERS.map(|peer| key(metric, rules, peer));
        sheet.goal(Statistic::Median, &margay, Limit::AtLeast(3.0), &linux)?;
        // What no rule can slow down is as fast as it can be: the rest is the walk through them.
        let fastest = key(metric, NONE, Peer::Redirect);
        sheet.goal(Statistic::Median, &margay, Limit::AtLeast(1.0 / KERNELS_SHARE), &fastest)?;
    }
    Ok(())
}

fn key(metric: &str, rules: Rules, peer: Peer) -> Key {
    Key::new(metric, &rules.to_string(), peer)
}

impl Rules {
    fn write(self, node: &Node) -> Result<()> {
        match self {
            NONE => {}
            Self::KubeProxy(rules) => {
                let services: Vec<_> = (0..rules / 5).map(service).collect();
                KubeProxy::start(node, Mode::Iptables, true, &services);
            }
            Self::Forward(rules) => {
                let mut text = "*filter\n:FORWARD ACCEPT [0:0]\n".to_owned();
                for rule in 0..rules {
                    let [from, to] = [0xc633_6400, 0xcb00_7100].map(|net| address(net, rule));
                    writeln!(text, "-A FORWARD -s {from}/32 -d {to}/32 -j DROP")?;
                }
                text += "COMMIT\n";
                let file = node.path("state/firewall");
                fs::write(&file, text)?;
                node.run(&["iptables-restore", &file.display().to_string()]);
            }
        }
        Ok(())
    }
}

/// One that nobody asks for anything.
fn service(number: usize) -> Service {
    Service {
        number,
        protocol: Protocol::Tcp,
        cluster: SocketAddr::from((address(0x0a60_0000, number), 80)),
        node_port: None,
        has_affinity: false,
        backends: vec![SocketAddr::from((address(0x0af4_8000, number), 8080))],
    }
}

fn address(net: u32, number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(net + number as u32)
}
