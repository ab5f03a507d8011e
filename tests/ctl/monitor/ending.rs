//! How it ends, and that nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use margay_abi::Settings;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::traffic::{PATIENCE, assert_tcp};
use rustix::process::{Pid, Signal, kill_process};

use super::{Monitoring, addresses, spoofed, two_pods};

#[test]
fn one_that_is_killed_leaves_nothing_switched_on_and_no_pin() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let [a, b] = addresses(&results, true);
    let frame = spoofed(&ctl, a, b, "192.0.2.1");
    let pins = pins(&node.bpffs_root());
    let mut killed = Monitoring::start(&ctl, &[]);
    assert_ne!(node.datapath().settings().unwrap(), Settings::default());

    killed.child.kill().unwrap();
    killed.child.wait().unwrap();

    let deadline = Instant::now() + 4 * PATIENCE;
    while node.datapath().settings().unwrap() != Settings::default() {
        assert!(Instant::now() < deadline, "the programs believe that somebody listens");
        pods[0].send_frame("eth0", &frame);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(self::pins(&node.bpffs_root()), pins);
    let mut next = Monitoring::start(&ctl, &["--reason", "spoofed_source"]);
    pods[0].send_frame("eth0", &frame);
    assert_eq!(next.next().unwrap()["source"]["address"], "192.0.2.1");
    next.end(Signal::TERM);
    assert_eq!(node.datapath().settings().unwrap(), Settings::default());
    assert_eq!(self::pins(&node.bpffs_root()), pins);
    assert_tcp(&pods[0], &pods[1], b);
}

#[test]
fn it_ends_after_so_many_events_so_much_time_a_signal_or_when_nobody_reads() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let [a, b] = addresses(&results, true);
    let frame = spoofed(&ctl, a, b, "192.0.2.1");

    let mut counted = Monitoring::start_as(&ctl, &["-c", "2", "--reason", "spoofed_source"]);
    (0..5).for_each(|_| pods[0].send_frame("eth0", &frame));
    let lines: Vec<_> = counted.lines.by_ref().map(Result::unwrap).collect();
    assert!(counted.child.wait().unwrap().success());
    assert_eq!(lines.len(), 2, "{lines:?}");
    let expected =
        format!("drop spoofed_source a: tcp 192.0.2.1:41000 > {b}:80 at from_pod of mgy");
    assert!(lines[0].contains(&expected) && !lines[0].contains('\u{1b}'), "{lines:?}");

    let mut timed = Monitoring::start(&ctl, &["--for", "0.2"]);
    while timed.next().is_some() {}
    assert!(timed.child.wait().unwrap().success());

    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        // These tests may themselves run below nohup.
        Monitoring::below(&["env", "--default-signal=HUP"], &ctl, &[]).end(signal);
    }

    assert_eq!(node.datapath().settings().unwrap(), Settings::default());
}

#[test]
fn below_nohup_it_goes_on_when_the_terminal_closes() {
    let Some(node) = Node::new() else { return };
    let (ctl, pods, results) = two_pods(&node);
    let [a, b] = addresses(&results, true);
    let frame = spoofed(&ctl, a, b, "192.0.2.1");
    let mut monitor = Monitoring::below(&["nohup"], &ctl, &["--reason", "spoofed_source"]);

    kill_process(Pid::from_child(&monitor.child), Signal::HUP).unwrap();
    pods[0].send_frame("eth0", &frame);

    assert_eq!(monitor.next().unwrap()["source"]["address"], "192.0.2.1");
    monitor.end(Signal::INT);
}

#[test]
fn a_pipe_whose_reader_is_gone_ends_it_though_nothing_happens() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let mut child = ctl.start(&["monitor", "--reason", "malformed"]);

    drop(child.stdout.take());

    assert!(child.wait().unwrap().success());
    assert_eq!(node.datapath().settings().unwrap(), Settings::default());
}

/// Everything below a folder.
fn pins(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pins(&path));
        }
        found.insert(path);
    }
    found
}
