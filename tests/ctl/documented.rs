//! What the documents show of margayctl is what it prints: the commands are run on a node like the one
//! that they were run on. Words with digits in them may differ; what is left out there (`…`) is not looked for.

use std::cell::RefCell;

use margay::naming;
use margay_tests::cluster::wait_until;
use margay_tests::cni::with_bandwidth;
use margay_tests::ctl::{Ctl, Printed};
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

const REFERENCE: &str = include_str!("../../docs/margayctl.md");
const README: &str = include_str!("../../README.md");
const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");

/// Of the pod web-b.
const HANDLE: &str = "handles/margay/91c0f5e2b8aa/eth0";
/// Of these, what the traffic was decides which lines there are.
const OF_TRAFFIC: [&str; 3] = ["datapath maps", "datapath flows", "datapath counters"];

#[test]
fn what_the_reference_shows_is_what_is_printed() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);

    let (mut tried, mut missing) = (0, Vec::new());
    let mut commands = shown(REFERENCE);
    // What these take away, others show.
    commands.sort_by_key(|(command, _)| {
        command.starts_with("ipam check") || command.starts_with("ipam release")
    });
    for (command, lines) in commands {
        let is_another_tests = ["man ", "monitor "].iter().any(|of| command.starts_with(of));
        if command.contains('>') || is_another_tests || command == "endpoint show a" {
            continue;
        }
        // Goes on until something happens: `monitor.rs` has what it prints.
        if command.starts_with("monitor") {
            continue;
        }
        let command = scene.prepared(&command);
        missing.extend(scene.missing(&command, &lines));
        tried += 1;
    }

    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(tried >= 17, "{tried} commands");
}

#[test]
fn what_the_other_pages_show_is_what_is_printed() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node);
    let commands =
        ["endpoint list", "datapath counters", "datapath upgrade --dry-run", "datapath upgrade"];

    for page in [README, TROUBLESHOOTING] {
        for (command, lines) in shown(page) {
            if commands.contains(&command.as_str()) {
                let missing = scene.missing(&command, &lines[..lines.len().min(1)]);
                assert!(missing.is_empty(), "{}", missing.join("\n"));
            }
        }
    }
    let status = shown(TROUBLESHOOTING).into_iter().find(|(command, _)| command == "status");
    let printed = scene.ctl.text(&["status"]);
    for line in status.unwrap().1.iter().filter(|line| !line.starts_with(' ') && !line.is_empty()) {
        let label = line.split_whitespace().next().unwrap();
        // There is nothing wrong there.
        assert!(label == "nothing" || printed.contains(label), "no {label} in {printed}");
    }
}

/// The commands of a page, each with what it shows of it.
fn shown(page: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    let (mut is_inside, mut is_ours) = (false, false);
    for line in page.lines() {
        if line.starts_with("```") {
            (is_inside, is_ours) = (line == "```console", false);
        } else if let Some(command) = line.strip_prefix("# ").filter(|_| is_inside) {
            let command = command.split(" #").next().unwrap_or_default().trim();
            let ours = command.strip_prefix("margayctl ");
            is_ours = ours.is_some();
            commands.extend(ours.map(|command| (command.to_owned(), Vec::new())));
        } else if let Some((_, lines)) = commands.last_mut().filter(|_| is_inside && is_ours) {
            lines.push(line.to_owned());
        }
    }
    commands
}

/// Three pods that have talked.
struct Scene<'n> {
    node: &'n Node,
    ctl: Ctl<'n>,
    pods: RefCell<Vec<Option<Pod<'n>>>>,
    addresses: Vec<String>,
    handle: RefCell<Vec<u8>>,
}

impl<'n> Scene<'n> {
    fn new(node: &'n Node) -> Self {
        let mut network = node.network();
        (network["name"], network["nodename"]) = (json!("margay"), json!("node1"));
        network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/16"}, {"cidr": "fd00:10:244::/64"}]);
        let ctl = Ctl::new(node, &network);
        let (mut pods, mut addresses) = (Vec::new(), Vec::new());
        for (name, id) in
            [("web-a", "4be1c2a97d31"), ("web-b", "91c0f5e2b8aa"), ("db-0", "d07e11c45f20")]
        {
            let pod = node.sandbox(id);
            let network = match name {
                "db-0" => with_bandwidth(&network, 80_000_000, 40_000_000),
                _ => network.clone(),
            };
            let arguments =
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}");
            let add = pod.invocation("ADD", &network).env("CNI_ARGS", &arguments);
            let result: Value = add.execute().success();
            addresses.push(address(&result, true).to_string());
            pods.push(Some(pod));
        }
        let scene = Self { node, ctl, pods: pods.into(), addresses, handle: RefCell::default() };
        {
            let pods = scene.pods.borrow();
            let to = scene.addresses[1].parse().unwrap();
            let [a, b] = [0, 1].map(|pod: usize| pods[pod].as_ref().unwrap());
            assert_ping(a, to);
            assert_tcp(a, b, to);
        }
        scene
    }

    /// Has what the page is about come about, and puts this node's addresses in place of the page's.
    fn prepared(&self, command: &str) -> String {
        let second = || self.addresses[1].clone();
        match command {
            "ipam check" => {
                let store = self.node.store();
                let handle = store.backend().get(HANDLE).unwrap().unwrap();
                store.backend().delete(HANDLE, None).unwrap();
                self.handle.replace(handle.value);
            }
            "ipam release 10.244.79.65" => {
                // With its handle, and without its sandbox.
                self.node.store().backend().create(HANDLE, &self.handle.borrow()).unwrap();
                let pod = self.pods.borrow_mut()[1].take().unwrap();
                let veth = naming::host_veth(&pod.attachment("margay", "eth0"));
                pod.destroy();
                wait_until("the veth pair's end", || {
                    self.node.pod_links().iter().all(|link| link.name != veth)
                });
            }
            _ => {}
        }
        let block = || {
            let shown = self.ctl.json(&["ipam", "show", &self.addresses[0]]);
            shown["block"].as_str().unwrap().to_owned()
        };
        command
            .replace("10.244.79.64/26", &block())
            .replace("10.244.79.64", &self.addresses[0])
            .replace("10.244.79.65", &second())
    }

    /// Of what is shown, what is not printed.
    fn missing(&self, command: &str, lines: &[String]) -> Vec<String> {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let Printed { stdout, stderr, .. } = self.ctl.run(&arguments);
        let printed: Vec<String> = stdout.lines().chain(stderr.lines()).map(shape).collect();
        let is_of_traffic = OF_TRAFFIC.iter().any(|of| command.starts_with(of));
        let wanted = if is_of_traffic { &lines[..1] } else { lines };
        let is_missing = |line: &&String| line.trim() != "…" && !printed.contains(&shape(line));
        let missing = wanted.iter().filter(is_missing);
        missing
            .map(|line| {
                format!(
                    "margayctl {command} is shown to print\n{line}\nand prints\n{stdout}{stderr}\n"
                )
            })
            .collect()
    }
}

/// Without what differs from node to node.
fn shape(line: &str) -> String {
    let word = |word: &str| match word.contains(|c: char| c.is_ascii_digit()) {
        true => "0".to_owned(),
        false => word.to_owned(),
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}
