//! `margayctl monitor`: what is told is what happened, and only while somebody listens.

mod ending;

use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use margay_abi::Counter;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::neighbours::{Neighbours, Way};
use margay_tests::pod::{Pod, address};
use margay_tests::service::Protocol;
use margay_tests::traffic::{Connection, PATIENCE, assert_ping, assert_tcp, listen};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fields::assert_fields;

#[test]
fn every_drop_is_told_with_its_reason_and_addresses() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let host_veth = results[0]["interfaces"][0]["name"].clone();
    let stranger = |is_ipv4: bool| if is_ipv4 { "10.244.0.200" } else { "fd00:10:244::fff0" };
    for is_ipv4 in [true, false] {
        let [a, b] = addresses(&results, is_ipv4);
        let (ip, link) = if is_ipv4 { (a.to_string(), "arp") } else { (a.to_string(), "icmpv6") };
        let claim = ["--claim", stranger(is_ipv4)];
        let mut drops: Vec<(&str, Vec<&str>, &str)> = vec![(
            "spoofed_source",
            vec!["--proto", "udp", "--sport", "7", "--dport", "53", claim[0], claim[1]],
            "udp",
        )];
        if is_ipv4 {
            drops.push(("arp_ignored", vec!["--proto", "arp"], link));
        } else {
            let advertisement = ["--proto", "ndp", "--message", "router-advertisement"];
            drops.push(("router_message", advertisement.to_vec(), link));
        }
        for (reason, arguments, protocol) in drops {
            let to = b.to_string();
            let mut question = vec!["trace", &ip];
            if !arguments.contains(&"ndp") {
                question.push(&to);
            }
            let answer = ctl.json(&[&question[..], &arguments[..]].concat());
            let mut monitor = Monitoring::start(&ctl, &["--event", "drop"]);

            pods[0].send_frame("eth0", &frame(&answer));

            let told = monitor.next_of(|event| event["reason"] == reason);
            assert_fields(
                &told,
                "bytes destination event from hook interface interface_index missed pod protocol \
                 reason source source_mac time to",
            );
            assert_eq!((&told["event"], &told["hook"]), (&json!("drop"), &json!("from_pod")));
            assert_eq!((&told["pod"], &told["interface"]), (&json!("a"), &host_veth), "{told}");
            assert_eq!(told["protocol"], protocol, "{told}");
            assert_eq!(told["bytes"], frame(&answer).len(), "{told}");
            assert_fields(&told["source"], "address port");
            if reason == "spoofed_source" {
                let ends = [&told["source"], &told["destination"]];
                let sent = [
                    json!({"address": stranger(is_ipv4), "port": 7}),
                    json!({"address": b, "port": 53}),
                ];
                assert_eq!(ends, [&sent[0], &sent[1]]);
            } else if reason == "arp_ignored" {
                let asked =
                    [json!({"address": a, "port": null}), json!({"address": b, "port": null})];
                assert_eq!([&told["source"], &told["destination"]], [&asked[0], &asked[1]]);
            }
        }
    }
}

#[test]
fn what_is_malformed_is_told_with_its_sender() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, _) = two_pods(&node);
    let mut malformed = vec![0xee; 6];
    malformed.extend([2; 6]);
    malformed.extend([8, 0, 0x4f]);
    malformed.resize(60, 0);
    let mut monitor = Monitoring::start(&ctl, &["--reason", "malformed"]);

    pods[0].send_frame("eth0", &malformed);

    let told = monitor.next_of(|_| true);
    assert_eq!(
        (&told["reason"], &told["source_mac"]),
        (&json!("malformed"), &json!("02:02:02:02:02:02"))
    );
}

#[test]
fn a_flow_is_told_with_its_verdict_before_and_after_and_where_it_got_it() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    for is_ipv4 in [true, false] {
        let [a, b] = addresses(&results, is_ipv4);
        let service: IpAddr = if is_ipv4 { "10.96.0.10" } else { "fd96::10" }.parse().unwrap();
        let ends = [SocketAddr::new(service, 80), SocketAddr::new(b, 8080)];
        node.expose(Protocol::Tcp, ends[0], ends[1]);
        let syn = |to: SocketAddr| syn(&ctl, a, to);
        let [straight, through_service] = [syn(ends[1]), syn(ends[0])];
        let mut monitor = Monitoring::start(&ctl, &["--event", "flow"]);
        let tuple = [json!({"address": a, "port": 41_000}), json!({"address": b, "port": 8080})];
        let is_of_it =
            |event: &Value| [&event["source"], &event["destination"]] == [&tuple[0], &tuple[1]];

        pods[0].send_frame("eth0", &straight);
        let begun = monitor.next_of(is_of_it);
        pods[0].send_frame("eth0", &through_service);
        let led = monitor.next_of(is_of_it);

        let told = |event: &Value| {
            ["from", "to", "hook", "pod", "protocol"]
                .map(|field| event[field].as_str().unwrap().to_owned())
        };
        assert_eq!(told(&begun), ["none", "direct", "from_pod", "a", "tcp"]);
        assert_eq!(told(&led), ["direct", "via_stack", "to_pod", "b", "tcp"]);
        assert_eq!((&led["event"], &led["reason"]), (&json!("flow"), &Value::Null));
        // The packet has others than those that it was sent with.
        assert_eq!([&begun["source_mac"], &led["source_mac"]], [&Value::Null; 2]);
    }
}

#[test]
fn each_is_told_what_it_asked_for() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let [a, b] = addresses(&results, true);
    let claims = ["192.0.2.1", "198.51.100.1"];
    let frames = [(0, claims[0]), (0, claims[1]), (1, claims[1])].map(|(pod, claim)| {
        let (from, to) = if pod == 0 { (a, b) } else { (b, a) };
        (pod, spoofed(&ctl, from, to, claim))
    });
    let last = spoofed(&ctl, a, b, "203.0.113.1");
    // The last packet is asked for by all.
    let asked: [(&[&str], &[usize]); 6] = [
        (&["--event", "drop"], &[0, 1, 2]),
        (&["--reason", "spoofed_source", "--pod", "a"], &[0, 1, 2]),
        (&["--address", "198.51.100.0/24", "--address", "203.0.113.1", "--event", "drop"], &[1, 2]),
        (&["--pod", "a", "--address", "192.0.2.1", "--address", "203.0.113.0/25"], &[0]),
        (&["--reason", "malformed", "--for", "20"], &[]),
        (&["--event", "flow", "--for", "20"], &[]),
    ];
    let mut monitors = asked.map(|(arguments, _)| Monitoring::start(&ctl, arguments));

    for (pod, frame) in &frames {
        pods[*pod].send_frame("eth0", frame);
    }
    pods[0].send_frame("eth0", &last);

    for (monitor, (arguments, expected)) in monitors.iter_mut().zip(asked).take(4) {
        let mut seen = Vec::new();
        loop {
            let event = monitor.next_of(|event| event["reason"] == "spoofed_source");
            let source = event["source"]["address"].as_str().unwrap().to_owned();
            if source == "203.0.113.1" {
                break;
            }
            let pod = usize::from(event["interface"] == results[1]["interfaces"][0]["name"]);
            let is_it = |(index, (from, _)): &(usize, &(usize, Vec<u8>))| {
                *from == pod && claims[usize::from(*index > 0)] == source
            };
            seen.push(frames.iter().enumerate().find(is_it).unwrap().0);
        }
        assert_eq!(seen, expected, "{arguments:?}");
    }
    for monitor in monitors.into_iter().skip(4) {
        let rest = monitor.end(Signal::INT);
        assert!(rest.iter().all(|event| event["reason"] != "spoofed_source"), "{rest:?}");
    }
}

#[test]
fn a_flood_is_kept_to_the_rate_and_what_is_kept_back_is_counted() {
    // No more than an interface lets wait (`net.core.netdev_max_backlog`).
    const FLOOD: u64 = 500;
    const LAST: u64 = 50;
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let [a, b] = addresses(&results, true);
    let frame = spoofed(&ctl, a, b, "192.0.2.1");
    let mut monitor =
        Monitoring::start(&ctl, &["--address", "192.0.2.1", "--rate", "10", "--for", "60"]);

    let send = |frames| (0..frames).for_each(|_| pods[0].send_frame("eth0", &frame));
    let (mut told, mut kept_back) = (0, 0);
    let mut count = |event: &Value| {
        if event["event"] == "missed" {
            assert_fields(&event["missed"], "lost stood_still suppressed");
            let others = [&event["missed"]["lost"], &event["missed"]["stood_still"]];
            assert_eq!(others, [&json!(0), &json!(false)]);
            kept_back += event["missed"]["suppressed"].as_u64().unwrap();
        } else {
            told += 1;
        }
        [told, kept_back]
    };

    send(FLOOD);
    let [told, kept_back] = loop {
        let counted = count(&monitor.next().expect("it goes on"));
        if counted.iter().sum::<u64>() >= FLOOD {
            break counted;
        }
    };
    assert_eq!(told + kept_back, FLOOD);
    assert!(kept_back > 0 && told >= 10, "{told} told, {kept_back} kept back");

    let dropped = || {
        let stats = node.datapath().stats().unwrap();
        stats[Counter::DropSpoofedSource as usize].1.packets
    };
    let before = dropped();
    send(LAST);
    let deadline = Instant::now() + PATIENCE;
    while dropped() < before + LAST {
        assert!(Instant::now() < deadline, "the flood does not arrive");
        thread::yield_now();
    }
    let rest = monitor.end(Signal::INT);
    let all: u64 = rest.iter().map(&mut count).last().unwrap().iter().sum();
    assert_eq!(all, FLOOD + LAST, "what was kept back last is told at the end");
}

#[test]
fn what_pods_do_is_the_same_while_somebody_listens() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let monitors = [Monitoring::start(&ctl, &[]), Monitoring::start(&ctl, &[])];
    for is_ipv4 in [true, false] {
        let [_, b] = addresses(&results, is_ipv4);
        let before = node.datapath().stats().unwrap();

        assert_tcp(&pods[0], &pods[1], b);
        assert_ping(&pods[0], b);

        let direct = Counter::DirectV4 as usize + usize::from(!is_ipv4);
        let after = node.datapath().stats().unwrap();
        assert!(after[direct].1.packets > before[direct].1.packets + 5, "the fast path");
    }
    for monitor in monitors {
        let told = monitor.end(Signal::INT);
        let begun =
            told.iter().filter(|event| event["protocol"] == "tcp" && event["to"] == "direct");
        assert_eq!(begun.count(), 2, "one of each family: {told:?}");
    }
}

#[test]
fn on_a_node_among_others_it_tells_what_goes_and_comes_in_between() {
    let Some(nodes) = Neighbours::connected(Way::Vxlan) else { return };
    let ends = [nodes.pod(0, "a"), nodes.pod(1, "b")];
    let [a, b] = ends.each_ref().map(|(_, result)| address(result, true));
    let listen = |number: usize, arguments: &[&str]| {
        let node = nodes.node(number);
        nodes.enter(number, || Monitoring::start(&Ctl::new(node, &node.network()), arguments))
    };
    let mut sender = listen(0, &[]);
    let mut receiver = listen(1, &["--address", &a.to_string()]);

    assert_tcp(&ends[0].0, &ends[1].0, b);
    let is_begun = |event: &Value| event["protocol"] == "tcp" && event["to"] == "direct";
    let sent = sender.next_of(is_begun);
    let received = receiver.next_of(is_begun);

    assert_eq!((&sent["hook"], &sent["pod"]), (&json!("pod_to_node"), &json!("a")), "{sent}");
    assert_eq!(
        (&received["hook"], &received["pod"]),
        (&json!("from_overlay"), &json!("b")),
        "{received}"
    );
    for event in [&sent, &received] {
        assert_eq!(
            [&event["source"]["address"], &event["destination"]["address"]],
            [&json!(a), &json!(b)]
        );
    }

    let to_the_overlay = nodes.enter(0, || {
        let node = nodes.node(0);
        let ctl = Ctl::new(node, &node.network());
        let question = ["--proto", "udp", "--dport", "4789"];
        frame(&ctl.json(&[&["trace", &a.to_string(), &b.to_string()], &question[..]].concat()))
    });
    ends[0].0.send_frame("eth0", &to_the_overlay);
    let dropped = sender.next_of(|event| event["event"] == "drop");
    assert_eq!(
        (&dropped["reason"], &dropped["hook"]),
        (&json!("encapsulated"), &json!("pod_to_node"))
    );
    assert_eq!(dropped["destination"], json!({"address": b, "port": 4789}));
}

#[test]
fn pods_that_come_while_it_listens_are_called_by_their_names() {
    let Some(nodes) = Neighbours::connected(Way::Vxlan) else { return };
    let (client, result) = nodes.pod(0, "client");
    let from = address(&result, true);
    let (_first, _) = nodes.pod(1, "first");
    let mut monitor = nodes.enter(1, || {
        let node = nodes.node(1);
        // An end, so that a test that waits for what never comes fails.
        let arguments = ["--event", "flow", "--rate", "1000000", "--for", "60"];
        Monitoring::start(&Ctl::new(node, &node.network()), &arguments)
    });
    let mut ports = 10_000..=u16::MAX;
    let mut connect_until_called = |pod: &Pod<'_>, address: IpAddr, name: &str| {
        let listener = listen(pod, SocketAddr::new(address, 0));
        let target = listener.local_addr().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A flow of its own: one that is known already is not told again.
            let local = SocketAddr::new(from, ports.next().unwrap());
            Connection::open_from(&client, local, target, &listener).unwrap();
            let told = monitor.next_of(|event| {
                event["hook"] == "from_overlay" && event["source"]["port"] == local.port()
            });
            if told["pod"] == name {
                break;
            }
            assert!(Instant::now() < deadline, "not {name}: {told}");
            // Or a fast machine is out of ports before names are looked up again.
            thread::sleep(Duration::from_millis(1));
        }
    };

    let (early, result) = nodes.pod(1, "early");
    let address = address(&result, true);
    connect_until_called(&early, address, "early");
    nodes.enter(1, || early.del(&nodes.node(1).network()));
    let (late, _) = nodes.pod_with(1, "late", |config| {
        config["capabilities"] = json!({"ips": true});
        config["runtimeConfig"] = json!({"ips": [address]});
    });
    connect_until_called(&late, address, "late");
}

#[test]
fn of_pods_whose_programs_cannot_tell_it_says_so() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let (old, new) = (node.sandbox("old"), node.sandbox("new"));
    old.add(&network);
    let earlier = margay_abi::ABI_VERSION - 1;
    fs::rename(node.pins(), node.bpffs_root().join(earlier.to_string())).unwrap();
    new.add(&network);

    let said = Monitoring::start(&ctl, &[]).said.clone();

    assert!(said.contains("nothing will be told of old: "), "{said}");
    assert!(said.contains("margayctl datapath upgrade"), "{said}");
    assert_eq!(ctl.run(&["datapath", "upgrade"]).code, 0);
    assert!(!Monitoring::start(&ctl, &[]).said.contains("nothing will be told"));
}

#[test]
fn where_it_cannot_listen_it_says_what_to_do() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let unloaded = ctl.run(&["monitor"]);
    let pod = node.sandbox("a");
    pod.add(&network);
    let unknown = ctl.run(&["monitor", "--pod", "nobody"]);
    let _monitors: Vec<_> = (0..8).map(|_| Monitoring::start(&ctl, &[])).collect();
    let ninth = ctl.run(&["monitor"]);

    assert_eq!([unloaded.code, unknown.code, ninth.code], [1, 1, 1]);
    assert!(unloaded.stderr.contains("margayctl doctor"), "{unloaded:?}");
    assert!(unknown.stderr.contains("margayctl endpoint list"), "{unknown:?}");
    assert!(ninth.stderr.contains("end another margayctl monitor"), "{ninth:?}");
}

/// The node's command, two pods, and the results of their ADDs.
fn two_pods(node: &Node) -> (Ctl<'_>, [Pod<'_>; 2], [Value; 2]) {
    let network = node.network();
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(&network));
    (Ctl::new(node, &network), pods, results)
}

fn addresses(results: &[Value; 2], is_ipv4: bool) -> [IpAddr; 2] {
    results.each_ref().map(|result| address(result, is_ipv4))
}

/// A SYN of a fixed port, as the pod with this address would send it.
fn syn(ctl: &Ctl<'_>, from: IpAddr, to: SocketAddr) -> Vec<u8> {
    let (from, port) = (from.to_string(), to.port().to_string());
    let ports = ["--sport", "41000", "--dport", &port];
    frame(&ctl.json(&[&["trace", &from, &to.ip().to_string()], &ports[..]].concat()))
}

/// What a pod must not send.
fn spoofed(ctl: &Ctl<'_>, from: IpAddr, to: IpAddr, claim: &str) -> Vec<u8> {
    let question = ["--claim", claim, "--sport", "41000", "--dport", "80"];
    frame(&ctl.json(&[&["trace", &from.to_string(), &to.to_string()], &question[..]].concat()))
}

fn frame(answer: &Value) -> Vec<u8> {
    let digits = answer["packet"]["frame"].as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The command while it runs.
struct Monitoring {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said before it listened.
    said: String,
}

impl Monitoring {
    /// Listens when this returns.
    fn start(ctl: &Ctl<'_>, arguments: &[&str]) -> Self {
        Self::start_as(ctl, &[arguments, &["-o", "json"]].concat())
    }

    fn start_as(ctl: &Ctl<'_>, arguments: &[&str]) -> Self {
        Self::of(ctl.start(&[&["monitor"], arguments].concat()))
    }

    /// The same, executed by another program.
    fn below(program: &[&str], ctl: &Ctl<'_>, arguments: &[&str]) -> Self {
        let monitor = ctl.command(&[&["monitor", "-o", "json"], arguments].concat());
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(monitor.get_program()).args(monitor.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::of(command.spawn().unwrap())
    }

    fn of(mut child: Child) -> Self {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("listening") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "it ended: {said}");
        }
        Self { child, lines, said }
    }

    fn next(&mut self) -> Option<Value> {
        let line = self.lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    /// An event that has to come.
    fn next_of(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.next().expect("it goes on");
            // That it stood still for a time may be, and nothing happened then.
            for count in ["lost", "suppressed"] {
                assert!(event["missed"][count].as_u64().is_none_or(|count| count == 0), "{event}");
            }
            if is_wanted(&event) {
                return event;
            }
        }
    }

    fn end(mut self, signal: Signal) -> Vec<Value> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut rest = Vec::new();
        while let Some(event) = self.next() {
            rest.push(event);
        }
        assert!(self.child.wait().unwrap().success(), "a signal is its ordinary end");
        rest
    }
}

impl Drop for Monitoring {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
