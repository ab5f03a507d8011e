//! `margayctl trace` says what becomes of a packet: for every row of ARCHITECTURE.md's packet tables, what it
//! said just before is what the programs then did. And saying it changes nothing.

mod from_pod;
mod nodes;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use margay_abi::{Counter, Traffic};
use margay_datapath::Datapath;
use margay_tests::ctl::Ctl;
use margay_tests::traffic::PATIENCE;
use margay_tests::{Node, Pod};
use serde_json::Value;

/// A row of a table, and a packet that it is about.
struct Row {
    /// The row's first cell.
    packet: &'static str,
    /// What the packet counts as, over IPv4 and over IPv6.
    counters: [Option<Counter>; 2],
    /// What is asked: `{b}` and the like stand for addresses of the family.
    question: &'static str,
    /// The verdict that the flow has before.
    flow: Option<u8>,
}

const fn row(packet: &'static str, counter: Counter, question: &'static str) -> Row {
    Row { packet, counters: [Some(counter); 2], question, flow: None }
}

impl Row {
    const fn over_ipv4(self) -> Self {
        let [v4, _] = self.counters;
        Self { counters: [v4, None], ..self }
    }

    const fn over_ipv6(self) -> Self {
        let [_, v6] = self.counters;
        Self { counters: [None, v6], ..self }
    }

    const fn or_over_ipv6(self, counter: Counter) -> Self {
        let [v4, _] = self.counters;
        Self { counters: [v4, Some(counter)], ..self }
    }

    const fn of_a_flow(self, verdict: u8) -> Self {
        Self { flow: Some(verdict), ..self }
    }

    /// What it counts as over a family, if there is such a packet.
    fn counter(&self, is_ipv4: bool) -> Option<Counter> {
        self.counters[usize::from(!is_ipv4)]
    }

    /// The question with names in place.
    fn arguments(&self, names: &BTreeMap<&str, String>, source_port: u16) -> Vec<String> {
        let mut question = self.question.to_owned();
        for (name, value) in names {
            question = question.replace(&format!("{{{name}}}"), value);
        }
        let mut arguments = vec!["trace".to_owned()];
        arguments.extend(question.split_whitespace().map(str::to_owned));
        if !question.contains("--frame") {
            arguments.extend(["--sport".to_owned(), source_port.to_string()]);
        }
        arguments
    }
}

/// Counters of a node.
type Counts = Vec<(Counter, Traffic)>;

/// Asks, and sees that the question changed nothing. What a kernel sends by itself may come in between; a
/// question that leaves a trace does so each time.
fn ask(ctl: &Ctl<'_>, datapath: &Datapath, arguments: &[String]) -> Value {
    const TIMES: usize = 4;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let look = || (datapath.stats().expect("stats"), datapath.flows().count().expect("flows"));
    let mut seen = Vec::new();
    for _ in 0..TIMES {
        let before = look();
        let answer = ctl.json(&arguments);
        let after = look();
        if before == after {
            return answer;
        }
        seen.push((before, after));
    }
    panic!("{arguments:?} left a trace each time: {seen:?}");
}

/// The counter that a step of an answer names.
fn counter(step: &Value) -> Option<Counter> {
    let name = step["counter"].as_str()?;
    Counter::ALL.into_iter().find(|counter| counter.name() == name)
}

/// The frame that was asked about.
fn frame(answer: &Value) -> Vec<u8> {
    let digits = answer["packet"]["frame"].as_str().expect("a frame").as_bytes();
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits")
    };
    digits.chunks(2).map(byte).collect()
}

/// Waits until all of `expected` went up, and asserts that nothing else did; what the stack sends to pods
/// apart, which may be its own answer.
fn assert_counted(
    datapath: &Datapath,
    before: &Counts,
    expected: &HashSet<Counter>,
    answer: &Value,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let moved = moved(before, &datapath.stats().expect("stats"));
        let others: Vec<_> = moved
            .iter()
            .filter(|&counter| !expected.contains(counter) && *counter != Counter::ToPod)
            .collect();
        assert!(others.is_empty(), "{others:?} went up as well: {answer:#}");
        if expected.is_subset(&moved) {
            return;
        }
        assert!(Instant::now() < deadline, "only {moved:?} went up: {answer:#}");
        std::thread::yield_now();
    }
}

fn moved(before: &Counts, after: &Counts) -> HashSet<Counter> {
    let pairs = before.iter().zip(after);
    pairs.filter(|(before, after)| before != after).map(|(_, (counter, _))| *counter).collect()
}

/// Has a pod send nothing by itself, not even answers: the tests send for it.
fn mute(pod: &Pod<'_>) {
    for command in ["iptables", "ip6tables"] {
        for chain in ["INPUT", "OUTPUT"] {
            pod.run(&[command, "-w", "-P", chain, "DROP"]);
        }
    }
}

/// Has the node that the thread is on send its pods nothing by itself: what it forwards still goes.
fn mute_node() {
    for command in ["iptables", "ip6tables"] {
        margay_tests::node::run(&[command, "-w", "-A", "OUTPUT", "-o", "mgy+", "-j", "DROP"]);
    }
}

fn names<const COUNT: usize>(
    pairs: [(&'static str, IpAddr); COUNT],
) -> BTreeMap<&'static str, String> {
    pairs.into_iter().map(|(name, address)| (name, address.to_string())).collect()
}

#[test]
fn every_counter_and_every_row_of_the_tables_has_a_packet() {
    let rows: Vec<&Row> = from_pod::ROWS.iter().chain(nodes::rows()).collect();

    // What `to_pod` counts is seen with every packet that the stack delivers.
    let counted: HashSet<Counter> =
        rows.iter().flat_map(|row| row.counters).flatten().chain([Counter::ToPod]).collect();
    assert_eq!(counted, Counter::ALL.into_iter().collect());

    let written = table_rows(include_str!("../../../ARCHITECTURE.md"));
    let tested: BTreeSet<&str> = rows.iter().map(|row| row.packet).collect();
    assert_eq!(tested, written.iter().map(String::as_str).collect());
}

/// First cells of the tables below "The way of a packet".
fn table_rows(document: &str) -> BTreeSet<String> {
    let section = document.split("## The way of a packet").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its end");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    rows.filter(|cell| *cell != "packet" && !cell.starts_with("---")).map(str::to_owned).collect()
}

#[test]
fn without_programs_it_says_so_and_makes_none() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let printed = ctl.run(&["trace", "10.244.0.1", "10.244.0.2"]);

    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("no programs of margay's are pinned"), "{printed:?}");
    assert!(!node.bpffs_root().exists());
}
