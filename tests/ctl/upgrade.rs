//! `margayctl datapath upgrade` and `datapath unload`, while pods talk.

use std::fs;
use std::net::TcpListener;
use std::time::{SystemTime, UNIX_EPOCH};

use margay::lock::Lock;
use margay::naming;
use margay_datastore::Heartbeat;
use margay_tests::ctl::Ctl;
use margay_tests::node::{WORLD_V4, WORLD_V6, node_address, plugin_directory};
use margay_tests::numbers::Numbers;
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

const OTHER: &str = "0123456789ab";

#[test]
fn an_upgrade_gives_pods_that_talk_this_releases_programs() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(&network));
    let ctl = Ctl::new(&node, &network);
    let progs = node.pins().join("progs");
    fs::rename(progs.join(node.datapath().build()), progs.join(OTHER)).unwrap();
    let numbers = numbers(&pods, &results);

    let plan = ctl.json(&["datapath", "upgrade", "--dry-run"]);
    assert_eq!(plan["to_replace"].as_array().unwrap().len(), 2, "{plan}");
    assert_eq!(fs::read_dir(&progs).unwrap().count(), 1, "a plan changes nothing");
    let done = ctl.json(&["datapath", "upgrade"]);

    assert_eq!((&done["pods"], done["replaced"].as_array().unwrap().len()), (&json!(2), 2));
    assert_eq!(done["to_replace"], json!([]));
    numbers.wait_for_more();
    numbers.stop();
    assert_healthy(&ctl, &["programs-unused"]);
    let again = ctl.json(&["datapath", "upgrade"]);
    assert_eq!((&again["pods"], &again["replaced"]), (&json!(2), &json!([])));
}

#[test]
fn an_upgrade_makes_maps_that_are_gone_of_the_configured_size() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    (network["max_pods"], network["max_flows"]) = (json!(1000), json!(2000));
    let pod = node.sandbox("a");
    pod.add(&network);
    let ctl = Ctl::new(&node, &network);
    fs::remove_dir_all(node.bpffs_root()).unwrap();

    assert_eq!(ctl.run(&["datapath", "upgrade"]).code, 0);

    let maps = ctl.json(&["datapath", "maps"]);
    let size = |name: &str| {
        let map = maps["maps"].as_array().unwrap().iter().find(|map| map["name"] == name);
        map.unwrap_or_else(|| panic!("{name} is not in {maps}"))["max_entries"].clone()
    };
    assert_eq!((size("pods_v4"), size("flows_v6")), (json!(1000), json!(2000)));
}

#[test]
fn after_an_unload_pods_go_on_by_the_hosts_stack() {
    for attach in ["clsact", "tcx"] {
        // A node of its own for each: a thread can be one only once.
        std::thread::spawn(move || {
            let Some(node) = Node::new() else { return };
            let mut network = node.network();
            network["attach"] = json!(attach);
            assert_pods_outlive_an_unload(&node, &network);
        })
        .join()
        .unwrap();
    }
}

fn assert_pods_outlive_an_unload(node: &Node, network: &Value) {
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(network));
    let ctl = Ctl::new(node, network);
    let numbers = numbers(&pods, &results);

    let done = ctl.json(&["datapath", "unload"]);

    assert_eq!(done["handed_over"].as_array().unwrap().len(), 2, "{done}");
    assert_eq!(done["pins"], json!([margay_abi::ABI_VERSION.to_string()]));
    assert_eq!(fs::read_dir(node.bpffs_root()).unwrap().count(), 0);
    numbers.wait_for_more();
    numbers.stop();
    let [a, b] = &pods;
    for pod in [a, b] {
        // Whoever remembers the gateway asks nobody.
        pod.run(&["ip", "neigh", "flush", "all"]);
        for world in [WORLD_V4, WORLD_V6] {
            assert_ping(pod, world.parse().unwrap());
        }
    }
    for ipv4 in [true, false] {
        assert_tcp(a, b, address(&results[1], ipv4));
        assert_ping(b, node_address(ipv4));
    }
    for (pod, result) in pods.iter().zip(&results) {
        let check = pod.check(network, result);
        assert!(check.is_success(), "{}", check.stdout());
    }
    assert_healthy(&ctl, &[]);

    // New pods get programs again, and all reach each other.
    let new = node.sandbox("new");
    let result = new.add(network);
    for ipv4 in [true, false] {
        assert_tcp(a, &new, address(&result, ipv4));
        assert_tcp(&new, a, address(&results[0], ipv4));
    }
    assert_healthy(&ctl, &[]);
    pods.iter().for_each(|pod| pod.del(network));
    new.del(network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn an_unload_whose_last_step_fails_names_the_pods_that_it_handed_over() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);
    let ctl = Ctl::new(&node, &network);
    let held = node.pins().join("held");
    fs::create_dir(&held).unwrap();
    node.run(&["mount", "-t", "bpf", "held", held.to_str().unwrap()]);

    let printed = ctl.run(&["datapath", "unload", "-o", "json"]);
    node.run(&["umount", held.to_str().unwrap()]);

    assert_eq!(printed.code, 1, "{printed:?}");
    let done: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(done["handed_over"], json!(["podnet/a/eth0"]));
    assert!(done["failed"][0].as_str().unwrap().contains("remove"), "{done}");
    assert_eq!(ctl.json(&["datapath", "unload"])["handed_over"], json!([]));
    assert_eq!(fs::read_dir(node.bpffs_root()).unwrap().count(), 0);
}

#[test]
fn an_unload_leaves_alone_what_a_verb_is_at_work_on_and_whom_it_would_cut_off() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    pod.add(&network);
    let ctl = Ctl::new(&node, &network);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = json!({"metrics_address": listener.local_addr().unwrap().to_string()});
    fs::write(node.path("agent.json"), agent.to_string()).unwrap();
    let answer = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok\n").unwrap();
    });
    let refused = ctl.run(&["datapath", "unload"]);
    answer.join().unwrap();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("systemctl stop margay-agent"), "{refused:?}");

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let heard_at = |at| {
        let heartbeat = Heartbeat { node: "node-under-test".to_owned(), at };
        node.store().put_heartbeat(&heartbeat).unwrap();
    };
    heard_at(now);
    for address in [agent["metrics_address"].clone(), json!("off")] {
        let agent = json!({"metrics_address": address});
        fs::write(node.path("agent.json"), agent.to_string()).unwrap();
        let refused = ctl.run(&["datapath", "unload"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("was heard of"), "{refused:?}");
    }
    heard_at(now - 121);

    node.run(&["ip", "route", "del", "default"]);
    let refused = ctl.run(&["datapath", "unload"]);
    assert!(refused.stderr.contains("no default route"), "{refused:?}");
    node.run(&["ip", "route", "add", "default", "via", WORLD_V4]);

    let name = naming::host_veth(&pod.attachment("podnet", "eth0"));
    let lock = Lock::take(&node.path("run"), &name).unwrap();
    let busy = ctl.run(&["datapath", "unload", "-o", "json"]);
    assert_eq!(busy.code, 1);
    let busy: Value = serde_json::from_str(&busy.stdout).unwrap();
    assert_eq!((&busy["busy"], &busy["pins"]), (&json!(["podnet/a/eth0"]), &json!([])));
    drop(lock);
    assert_healthy(&ctl, &[]);
    assert_ping(&pod, WORLD_V4.parse().unwrap());
}

fn numbers(pods: &[Pod<'_>; 2], results: &[Value; 2]) -> Numbers {
    let [a, b] = pods;
    let of = |result| (address(result, true), address(result, false));
    let ((a4, a6), (b4, b6)) = (of(&results[0]), of(&results[1]));
    Numbers::start((a, a4, a6), (b, b4, b6))
}

/// That doctor finds nothing but this.
fn assert_healthy(ctl: &Ctl<'_>, but: &[&str]) {
    let plugins = plugin_directory();
    let diagnosis = ctl.json(&["doctor", "--bin-dir", plugins.to_str().unwrap()]);
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let ids: Vec<_> = findings.map(|finding| finding["id"].as_str().unwrap()).collect();
    assert_eq!(ids, but, "{diagnosis:#}");
}
