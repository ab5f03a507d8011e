//! What pods of one node send to pods of another, asked on both.

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, UdpSocket};

use margay_abi::{Counter, Overlay, Remote, flow_verdict, remote_mode};
use margay_tests::ctl::Ctl;
use margay_tests::neighbours::{self, Way};
use margay_tests::pod::address;
use margay_tests::{Neighbours, Pod, node};
use serde_json::Value;

use super::from_pod::know;
use super::{Row, ask, assert_counted, counter, frame, mute, mute_node, names, row};

const ENCAPSULATED: &str = "UDP to the overlay's port, while there is an overlay, or IPv6 with more \
     extension headers than are looked behind";
const NO_REMOTE: &str =
    "not to an address in `remote_*`, or no matter of `from_pod`'s last three rows for pods";
const REMOTE: &str = "to a pod of another node";
const TO_OVERLAY: &str = "the same, the flow is direct, the way is VXLAN";
const PLAINLY: &str = "the same, the way is plain";
const NO_WAY: &str = "no overlay, no route";
const OF_OTHERS: &str = "not to a pod of this node, or not from an address in `remote_*`";
const ODD: &str =
    "to another MAC address than the interface's, VLAN tag, fragment, options, extension header";
const OTHERWISE: &str = "otherwise";
const DIRECT: &str = "the flow is direct";

/// By what the sender's node makes of them.
const SENT: &[Row] = &[
    row(NO_REMOTE, Counter::StackNotLocal, "{a} {world}"),
    row(NO_REMOTE, Counter::StackUnsupported, "{a} {b} --ip-options"),
    row(REMOTE, Counter::StackFlow, "{a} {b} --established"),
    row(REMOTE, Counter::StackFlow, "{a} {b} --proto udp"),
    row(REMOTE, Counter::StackIcmpError, "{a} {b} --ttl 1"),
];
const SENT_IN_VXLAN: &[Row] = &[
    row(ENCAPSULATED, Counter::DropEncapsulated, "{a} {b} --proto udp --dport 4789"),
    row(ENCAPSULATED, Counter::DropEncapsulated, "{a} {world} --proto udp --dport 4789 --fragment"),
    row(TO_OVERLAY, Counter::ToNodeV4, "{a} {b}").or_over_ipv6(Counter::ToNodeV6),
];
const SENT_PLAINLY: &[Row] =
    &[row(PLAINLY, Counter::ToNodeV4, "{a} {b}").or_over_ipv6(Counter::ToNodeV6)];
const SENT_WITHOUT_OVERLAY: &[Row] = &[row(NO_WAY, Counter::StackNotLocal, "{a} {b}")];
/// By what the receiver's node makes of them.
const RECEIVED: &[Row] = &[
    row(ODD, Counter::StackUnsupported, "{a} {b} --proto udp --fragment"),
    row(OTHERWISE, Counter::StackFlow, "{a} {b} --established").of_a_flow(flow_verdict::DIRECT),
    row(DIRECT, Counter::FromNodeV4, "{a} {b}").or_over_ipv6(Counter::FromNodeV6),
];
const RECEIVED_BY_THE_OTHER_WAY: &[Row] =
    &[row(DIRECT, Counter::FromNodeV4, "{a} {b} --from overlay").or_over_ipv6(Counter::FromNodeV6)];
const UNCOUNTED: &[Row] = &[Row {
    packet: OF_OTHERS,
    counters: [None; 2],
    question: "{node} {b} --proto udp",
    flow: None,
}];

pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    let tables = [
        SENT,
        SENT_IN_VXLAN,
        SENT_PLAINLY,
        SENT_WITHOUT_OVERLAY,
        RECEIVED,
        RECEIVED_BY_THE_OTHER_WAY,
        UNCOUNTED,
    ];
    tables.into_iter().flatten()
}

#[test]
fn what_goes_to_another_node_in_vxlan_becomes_what_trace_says() {
    on_nodes(Way::Vxlan, |pods| {
        pods.send_all(&[SENT, SENT_IN_VXLAN]);
        pods.assert_told_of_outer_headers();
        pods.receive_all(&[RECEIVED]);

        pods.nodes.datapath(0).set_overlay(&Overlay::default()).expect("forget the overlay");
        pods.send_all(&[SENT_WITHOUT_OVERLAY]);
    });
}

#[test]
fn what_goes_to_another_node_plainly_becomes_what_trace_says() {
    on_nodes(Way::Plain, |pods| {
        pods.send_all(&[SENT, SENT_PLAINLY]);
        pods.receive_all(&[RECEIVED]);
    });
}

#[test]
fn what_comes_by_another_way_than_goes_back_becomes_what_trace_says() {
    on_nodes(Way::Vxlan, |pods| {
        let remotes = pods.nodes.datapath(1).remotes();
        for (prefix, remote) in remotes.entries().expect("ways") {
            remotes.set(prefix, &Remote { mode: remote_mode::PLAIN, ..remote }).expect("set");
        }
        pods.receive_all(&[RECEIVED_BY_THE_OTHER_WAY]);
    });
}

#[test]
fn what_comes_from_no_pod_becomes_what_trace_says() {
    on_nodes(Way::Plain, |pods| {
        for is_ipv4 in [true, false] {
            let [_, b] = &pods.ends;
            let node = neighbours::underlay_address(0, is_ipv4);
            let receiver = address(&b.1, is_ipv4);
            let names = names([("node", node), ("b", receiver)]);
            let arguments = UNCOUNTED[0].arguments(&names, 41_000);
            let (answer, before) = pods.ask(1, &arguments);
            let steps = answer["steps"].as_array().expect("steps");
            assert_eq!(steps[0]["hook"], "from_uplink", "{answer:#}");
            assert_eq!(counter(&steps[0]), None, "{answer:#}");
            assert_eq!(counter(&steps[2]), Some(Counter::ToPod), "{answer:#}");

            let socket = UdpSocket::bind(SocketAddr::new(node, 0)).expect("bind");
            socket.send_to(b"data", SocketAddr::new(receiver, 80)).expect("send");

            pods.assert_counted(1, &before, &answer);
        }
    });
}

/// A pod on each of two nodes.
struct Pods<'n> {
    ends: [(Pod<'n>, Value); 2],
    nodes: &'n Neighbours,
}

/// Makes two nodes with a pod each, where the machine lets it.
fn on_nodes(way: Way, test: impl FnOnce(&Pods<'_>)) {
    let Some(nodes) = Neighbours::connected(way) else { return };
    let ends = [nodes.pod(0, "a"), nodes.pod(1, "b")];
    for (number, (pod, _)) in ends.iter().enumerate() {
        mute(pod);
        nodes.enter(number, mute_node);
    }
    // A packet that waited for its next hop's address would be counted among later ones.
    for is_ipv4 in [true, false] {
        let other = neighbours::underlay_address(1, is_ipv4).to_string();
        nodes.enter(0, || node::run(&["ping", "-n", "-c", "1", "-W", "5", &other]));
    }
    test(&Pods { ends, nodes: &nodes });
}

impl Pods<'_> {
    /// Asks the sender's node about every packet of the tables, and sends it.
    fn send_all(&self, tables: &[&[Row]]) {
        self.for_each(tables, 41_000, |row, is_ipv4, port| {
            let arguments = row.arguments(&self.names(is_ipv4), port);
            let (answer, before) = self.ask(0, &arguments);
            assert_eq!(first_counter(&answer), row.counter(is_ipv4), "{arguments:?}: {answer:#}");
            self.send(&answer);
            self.assert_counted(0, &before, &answer);
        });
    }

    /// Asks both nodes about every packet of the tables, and has the first send it to the second.
    fn receive_all(&self, tables: &[&[Row]]) {
        self.for_each(tables, 42_000, |row, is_ipv4, port| {
            if let Some(verdict) = row.flow {
                let [(_, a), (_, b)] = &self.ends;
                let ends = [(address(a, is_ipv4), port), (address(b, is_ipv4), 80)];
                self.nodes.enter(0, || {
                    know(&self.nodes.node(0).datapath(), ends[0], ends[1], verdict);
                });
            }
            let at_receiver = row.arguments(&self.names(is_ipv4), port);
            let end = at_receiver.iter().position(|argument| argument == "--from");
            let at_sender: Vec<String> = match end {
                Some(end) => [&at_receiver[..end], &at_receiver[end + 2..]].concat(),
                None => at_receiver.clone(),
            };
            let (sent, before_sent) = self.ask(0, &at_sender);
            let (received, before_received) = self.ask(1, &at_receiver);
            let expected = row.counter(is_ipv4);
            assert_eq!(first_counter(&received), expected, "{at_receiver:?}: {received:#}");
            self.send(&sent);
            self.assert_counted(0, &before_sent, &sent);
            self.assert_counted(1, &before_received, &received);
        });
    }

    /// The first node tells which headers are put in front of what goes to the second, and by which
    /// interface it leaves.
    fn assert_told_of_outer_headers(&self) {
        for is_ipv4 in [true, false] {
            let names = self.names(is_ipv4);
            let arguments = ["trace", &names["a"], &names["b"]].map(str::to_owned);
            let (answer, _) = self.ask(0, &arguments);
            let notes = answer["steps"][0]["notes"].to_string();
            assert!(notes.contains("VXLAN from 172.30.0.1 to 172.30.0.2"), "{answer:#}");
            let summary = answer["outcome"]["summary"].to_string();
            assert!(summary.contains("in VXLAN by underlay0"), "{answer:#}");
            let changes = answer["steps"][0]["changes"].to_string();
            assert!(changes.contains(r#""after":"63""#), "{answer:#}");
        }
    }

    fn for_each(&self, tables: &[&[Row]], first_port: u16, mut look: impl FnMut(&Row, bool, u16)) {
        for is_ipv4 in [true, false] {
            for (row, port) in tables.iter().copied().flatten().zip(first_port..) {
                look(row, is_ipv4, port);
            }
        }
    }

    fn names(&self, is_ipv4: bool) -> BTreeMap<&'static str, String> {
        let [(_, a), (_, b)] = &self.ends;
        let world = if is_ipv4 { node::WORLD_V4 } else { node::WORLD_V6 };
        names([
            ("a", address(a, is_ipv4)),
            ("b", address(b, is_ipv4)),
            ("world", world.parse().expect("address")),
        ])
    }

    /// What a node says of a packet, and its counters just before the packet.
    fn ask(&self, number: usize, arguments: &[String]) -> (Value, super::Counts) {
        let node = self.nodes.node(number);
        self.nodes.enter(number, || {
            let ctl = Ctl::new(node, &node.network());
            let datapath = node.datapath();
            let answer = ask(&ctl, &datapath, arguments);
            (answer, datapath.stats().expect("stats"))
        })
    }

    fn send(&self, answer: &Value) {
        self.ends[0].0.send_frame("eth0", &frame(answer));
    }

    fn assert_counted(&self, number: usize, before: &super::Counts, answer: &Value) {
        let steps = answer["steps"].as_array().expect("steps");
        let all: HashSet<Counter> = steps.iter().filter_map(counter).collect();
        let node = self.nodes.node(number);
        self.nodes.enter(number, || assert_counted(&node.datapath(), before, &all, answer));
    }
}

fn first_counter(answer: &Value) -> Option<Counter> {
    counter(&answer["steps"][0])
}
