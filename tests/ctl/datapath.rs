//! `margayctl datapath`.

use std::io::{BufRead as _, BufReader};

use margay_abi::Counter;
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Deserializer, Value, json};

use crate::fields::assert_fields;

#[test]
fn maps_are_listed_with_how_full_they_are() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    for pod in &pods {
        pod.add(&network);
    }

    let listed = ctl.json(&["datapath", "maps"]);

    assert_fields(&listed, "maps root");
    let maps = listed["maps"].as_array().unwrap();
    let names: Vec<_> = maps.iter().map(|map| map["name"].as_str().unwrap()).collect();
    for name in margay_abi::map_name::ALL {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let map = |name: &str| maps.iter().find(|map| map["name"] == name).unwrap();
    let pods_v4 = map("pods_v4");
    assert_fields(
        pods_v4,
        "abi_version entries id key_bytes max_entries memory_bytes name type value_bytes",
    );
    let numbers = ["entries", "max_entries", "key_bytes"].map(|field| pods_v4[field].clone());
    assert_eq!(numbers, [json!(2), json!(65_536), json!(4)]);
    assert!(pods_v4["memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!([&map("flows_v4")["type"], &map("remote_v6")["type"]], ["lru_hash", "lpm_trie"]);
    assert_eq!(map("stats")["entries"], Counter::COUNT);
}

#[test]
fn flows_are_those_that_the_programs_remember() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = ["a", "b", "c"].map(|name| node.sandbox(name));
    let results = pods.each_ref().map(|pod| pod.add(&network));
    let ips = results.each_ref().map(|result| address(result, true));
    let [a, b, c] = &pods;
    assert_tcp(a, b, ips[1]);
    assert_ping(c, ips[1]);

    let flows = ctl.json(&["datapath", "flows"]);
    let of_a = ctl.json(&["datapath", "flows", "--pod", "a"]);
    let of_c = ctl.json(&["datapath", "flows", "--address", &ips[2].to_string()]);

    let flows = flows["flows"].as_array().unwrap();
    assert_fields(&flows[0], "first protocol second verdict");
    assert_fields(&flows[0]["first"], "address port");
    let tcp = flows.iter().find(|flow| flow["protocol"] == "tcp").unwrap();
    assert_eq!(tcp["verdict"], "direct");
    let mut ends = [&tcp["first"]["address"], &tcp["second"]["address"]];
    ends.sort_by_key(|end| end.to_string());
    let mut expected = [json!(ips[0]), json!(ips[1])];
    expected.sort_by_key(Value::to_string);
    assert_eq!(ends, [&expected[0], &expected[1]]);
    assert_eq!(of_a["flows"], json!([tcp]));
    let of_c = of_c["flows"].as_array().unwrap();
    assert!(of_c.len() == 1 && of_c[0]["protocol"] == "icmp", "{of_c:?}");
}

#[test]
fn programs_are_listed_with_where_they_are_attached() {
    for attach in ["clsact", "tcx"] {
        let Some(node) = Node::new() else { return };
        let mut network = node.network();
        network["attach"] = json!(attach);
        let ctl = Ctl::new(&node, &network);
        let pod = node.sandbox("a");
        let result = pod.add(&network);
        let host_veth = result["interfaces"][0]["name"].clone();

        let listed = ctl.json(&["datapath", "programs"]);

        assert_fields(&listed, "programs statistics");
        let programs = listed["programs"].as_array().unwrap();
        assert_fields(
            &programs[0],
            "abi_version build id instructions interfaces is_current loaded_at \
            machine_code_bytes map_ids memory_bytes program run_count run_time_ns tag verified_instructions",
        );
        let ids = node.datapath().program_ids();
        for (name, id) in [("from_pod", ids.from_pod), ("to_pod", ids.to_pod)] {
            let program = programs.iter().find(|program| program["program"] == name).unwrap();
            assert_eq!(program["id"], id.unwrap().0);
            assert_eq!(program["interfaces"], json!([host_veth]), "{attach}");
            assert_eq!(program["build"], node.datapath().build());
            assert_eq!(program["is_current"], true);
            assert!(program["instructions"].as_u64().unwrap() > 10);
        }
    }
}

#[test]
fn counters_count_and_have_rates_while_watched() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(&network));
    assert_ping(&pods[0], address(&results[1], true));
    let of = |document: &Value, name: &str| {
        let counters = document["counters"].as_array().unwrap();
        counters.iter().find(|counter| counter["name"] == name).unwrap().clone()
    };

    let counted = ctl.json(&["datapath", "counters"]);

    assert_eq!(counted["counters"].as_array().unwrap().len(), Counter::ALL.len());
    let direct = of(&counted, "direct_v4");
    assert_fields(&direct, "bytes name packets rate");
    assert_eq!(direct["packets"], node.packets(Counter::DirectV4));
    assert_eq!(direct["rate"], Value::Null);
    let text = ctl.text(&["datapath", "counters"]);
    assert!(text.contains("direct_v4") && !text.contains("drop_malformed"), "{text}");

    let mut watching =
        ctl.start(&["datapath", "counters", "-w", "--interval", "0.2", "-o", "json"]);
    let reader = BufReader::new(watching.stdout.take().unwrap());
    let mut documents = Deserializer::from_reader(reader).into_iter::<Value>();
    let first = documents.next().unwrap().unwrap();
    assert_eq!(of(&first, "direct_v4")["rate"], Value::Null);
    let mut seen = 0;
    while seen == 0 {
        assert_ping(&pods[0], address(&results[1], true));
        let document = documents.next().unwrap().unwrap();
        seen = of(&document, "direct_v4")["rate"]["packets_per_s"].as_u64().unwrap_or(0);
    }
    let pid = Pid::from_child(&watching);
    kill_process(pid, Signal::INT).unwrap();
    assert!(watching.wait().unwrap().success(), "interrupted is its ordinary end");
}

#[test]
fn a_watch_shows_again_only_what_is_another() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let mut watching = ctl.start(&["endpoint", "list", "-w", "--interval", "0.1"]);
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let headings = lines.next().unwrap().unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with('a'));

    let b = node.sandbox("b");
    b.add(&network);

    // With the second pod comes the whole table again, whose first state may be the pod as it is made.
    let again = lines.next().unwrap().unwrap();
    assert!(again.starts_with("POD") && headings.starts_with("POD"), "{again}");
    assert!(lines.next().unwrap().unwrap().starts_with('a'));
    assert!(lines.next().unwrap().unwrap().starts_with('b'));
    kill_process(Pid::from_child(&watching), Signal::INT).unwrap();
    assert!(watching.wait().unwrap().success());
}

#[test]
fn without_programs_it_says_so() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    for command in ["maps", "flows", "programs", "counters"] {
        let printed = ctl.run(&["datapath", command]);
        assert_eq!(printed.code, 1, "{command}");
        assert!(printed.stderr.contains("no programs of margay's are pinned"), "{printed:?}");
    }
}
