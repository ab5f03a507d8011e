//! `margayctl doctor`: a healthy node has no findings, and each finding has a test that causes it.

mod agent;
mod configuration;
mod dataplane;
mod datastore;
mod endpoints;
mod host;
mod leftovers;
mod mending;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use margay_tests::ctl::{Ctl, Printed};
use margay_tests::node::plugin_directory;
use margay_tests::traffic::PATIENCE;
use margay_tests::{Node, Pod};
use serde_json::Value;

/// Where what a test causes is written down: in the sources of these tests.
const SOURCES: [&str; 9] = [
    include_str!("agent.rs"),
    include_str!("configuration.rs"),
    include_str!("dataplane.rs"),
    include_str!("datastore.rs"),
    include_str!("endpoints.rs"),
    include_str!("host.rs"),
    include_str!("leftovers.rs"),
    include_str!("mending.rs"),
    include_str!("../pools.rs"),
];

const PAGES: [&str; 4] = [
    include_str!("../../../docs/troubleshooting.md"),
    include_str!("../../../docs/margayctl.md"),
    include_str!("../../../docs/install.md"),
    include_str!("../../../README.md"),
];

#[test]
fn a_healthy_node_has_no_findings() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network_with_nat();
    for attach in ["clsact", "tcx"] {
        network["attach"] = attach.into();
        let pods = [node.sandbox(&format!("{attach}-a")), node.sandbox(&format!("{attach}-b"))];
        pods.iter().for_each(|pod| drop(pod.add(&network)));
        let ctl = Ctl::new(&node, &network);

        let diagnosis = Diagnosis::of(&ctl);

        assert_eq!((diagnosis.code, diagnosis.verdict()), (0, "healthy"), "{diagnosis:?}");
        assert_eq!(diagnosis.ids(), [] as [&str; 0], "{diagnosis:?}");
        let text = ctl.text(&["doctor", "--bin-dir", plugin_directory().to_str().unwrap()]);
        assert_eq!(text, "nothing is wrong\n");
        pods.iter().for_each(|pod| pod.del(&network));
    }
}

#[test]
fn every_finding_has_a_test_that_causes_it() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let listed = ctl.json(&["doctor", "--list"]);

    let listed = listed["findings"].as_array().unwrap();
    let ids: BTreeSet<&str> = listed.iter().map(|kind| kind["id"].as_str().unwrap()).collect();
    let is_caused = |id: &&str| SOURCES.iter().any(|source| source.contains(&format!("\"{id}\"")));
    let without: Vec<_> = ids.into_iter().filter(|id| !is_caused(id)).collect();
    assert_eq!(without, [] as [&str; 0]);
}

#[test]
fn every_finding_is_in_the_table_of_the_troubleshooting_page() {
    let page = include_str!("../../../docs/troubleshooting.md");
    let (_, table) = page.split_once("| finding | gravity |").unwrap();
    let rows: Vec<String> = table.lines().skip(2).map(|row| row.replace('`', "")).collect();
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let listed = ctl.json(&["doctor", "--list"]);

    let row = |kind: &Value| {
        let cell = |key: &str| kind[key].as_str().unwrap().to_owned();
        format!("| {} |", ["id", "gravity", "meaning", "remedy"].map(cell).join(" | "))
    };
    let wanted: Vec<_> = listed["findings"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(rows, wanted);
}

/// Under each finding that the pages show, what doctor says of it today.
#[test]
fn findings_that_the_documents_show_are_printed_like_that() {
    let Some(node) = Node::new() else { return };
    let listed = Ctl::new(&node, &node.network()).json(&["doctor", "--list"]);
    let kinds = listed["findings"].as_array().unwrap();
    let mut shown = 0;
    for page in PAGES {
        let mut lines = page.lines().peekable();
        while let Some(line) = lines.next() {
            let Some((gravity, id)) = line.split_once("  ") else { continue };
            if !["error", "warning", "note"].contains(&gravity) || line.contains(" | ") {
                continue;
            }
            let id = id.trim();
            let kind = kinds.iter().find(|kind| kind["id"] == id);
            let kind = kind.unwrap_or_else(|| panic!("{id} is no finding"));
            assert_eq!(kind["gravity"], gravity, "{id}");
            let mut below = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with("         ")) {
                below.push(line.trim());
            }
            let (meaning, remedy) = (kind["meaning"].as_str(), kind["remedy"].as_str());
            let last = [meaning.unwrap().to_owned(), format!("do: {}", remedy.unwrap())];
            assert_eq!(below[below.len() - 2..], last, "{id}");
            shown += 1;
        }
    }
    assert!(shown >= 8, "the pages show {shown} findings");
}

/// What doctor says.
#[derive(Debug)]
struct Diagnosis {
    code: i32,
    document: Value,
}

impl Diagnosis {
    fn of(ctl: &Ctl<'_>) -> Self {
        Self::with(ctl, &[])
    }

    fn with(ctl: &Ctl<'_>, arguments: &[&str]) -> Self {
        let plugins = plugin_directory();
        let standard = ["doctor", "--bin-dir", plugins.to_str().unwrap(), "-o", "json"];
        Self::read(&ctl.run(&[&standard[..], arguments].concat()))
    }

    /// Of a command that was made ready.
    fn by(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Self::read(&Printed { stdout, stderr, code: output.status.code().unwrap() })
    }

    fn read(printed: &Printed) -> Self {
        let document = serde_json::from_str(&printed.stdout);
        let document = document.unwrap_or_else(|error| panic!("{error}: {printed:?}"));
        Self { code: printed.code, document }
    }

    fn verdict(&self) -> &str {
        self.document["verdict"].as_str().unwrap()
    }

    fn findings(&self) -> impl Iterator<Item = (&str, &str)> {
        let findings = self.document["findings"].as_array().unwrap().iter();
        findings.map(|it| (it["id"].as_str().unwrap(), it["finding"].as_str().unwrap()))
    }

    fn ids(&self) -> Vec<&str> {
        self.findings().map(|(id, _)| id).collect()
    }

    fn done(&self) -> Vec<&str> {
        let done = self.document["done"].as_array().unwrap().iter();
        done.map(|done| done.as_str().unwrap()).collect()
    }

    /// Asserts that this was found, in words that name the thing, and that the exit code tells of it.
    #[track_caller]
    fn assert_found(&self, id: &str, words: &str) {
        let found = self.findings().any(|(found, text)| found == id && text.contains(words));
        assert!(found, "no {id} that says {words:?}: {self:#?}");
        let gravities: Vec<&str> = self.document["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["gravity"].as_str().unwrap())
            .collect();
        let expected = if gravities.contains(&"error") {
            20
        } else if gravities.contains(&"warning") {
            10
        } else {
            0
        };
        assert_eq!(self.code, expected, "{self:#?}");
        let rank =
            |gravity: &&str| ["error", "warning", "note"].iter().position(|it| it == gravity);
        assert!(gravities.is_sorted_by_key(rank), "{self:#?}");
    }

    /// Asserts that this and nothing else was found.
    #[track_caller]
    fn assert_only(&self, ids: &[&str]) {
        let found: BTreeSet<&str> = self.ids().into_iter().collect();
        assert_eq!(found, ids.iter().copied().collect(), "{self:#?}");
    }
}

/// A node with a network and a pod, which is healthy.
fn node_with_a_pod<'n>(node: &'n Node, network: &Value) -> (Ctl<'n>, Pod<'n>, Value) {
    let pod = node.sandbox("a");
    let result = pod.add(network);
    (Ctl::new(node, network), pod, result)
}

fn host_veth(result: &Value) -> &str {
    result["interfaces"][0]["name"].as_str().unwrap()
}

fn set(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

/// Ends a sandbox, and waits until its interface has gone with it.
fn end(node: &Node, pod: Pod<'_>) {
    let veth = margay::naming::host_veth(&pod.attachment("podnet", "eth0"));
    pod.destroy();
    let deadline = Instant::now() + PATIENCE;
    while node.pod_links().iter().any(|link| link.name == veth) {
        assert!(Instant::now() < deadline, "{veth} outlives its sandbox");
        std::thread::yield_now();
    }
}
