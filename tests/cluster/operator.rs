//! What an operator does about nodes: the real margayctl on the records of real agents.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::process::{Command, Output, Stdio};

use margay_datapath::NodeDatapath;
use margay_datastore::Heartbeat;
use margay_tests::cluster::{Cluster, Layout, Member, MemberPod, UPLINK, wait_until};
use margay_tests::node::{plugin_directory, run};
use margay_tests::traffic::Place;
use serde_json::{Value, json};

#[test]
fn a_node_is_heard_or_silent_and_deleted_once_it_is_dead() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 3) else { return };
    cluster.start_agents();
    let [one, other, leaver] = cluster.nodes() else { panic!("three nodes") };
    let add = |node: &Member| node.add("one", &node.network("Always"));
    let mut pods: Vec<MemberPod> = cluster.nodes().iter().map(add).collect();
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let gone = pods.pop().unwrap();
    let had = [true, false].map(|ipv4| gone.address(ipv4));
    for node in [one, other] {
        wait_until("programs that know the way", || had.iter().all(|ip| knows(node, *ip)));
    }
    wait_until("all are heard", || agents(one) == ["heard"; 3]);
    let listed = nodes(one);
    let row = &listed[2];
    assert_eq!((&row["name"], &listed[0]["is_this"]), (&json!(leaver.name()), &json!(true)));
    assert_eq!((&row["endpoints"], &row["used"]), (&json!(1), &json!(4)), "a pod, the overlay");
    assert_eq!(row["addresses"][0], format!("{}/24", leaver.address(true)));
    assert_eq!(row["overlay"]["addresses"].as_array().unwrap().len(), 2, "{row}");

    assert_refused(&margayctl(one, &["node", "delete", leaver.name(), "--yes"]), "is alive");
    assert_eq!(nodes(one)[2]["used"], 4);
    leaver.kill_agent();
    // As it is when it has been dead for long.
    cluster.store().put_heartbeat(&Heartbeat { node: leaver.name().to_owned(), at: 1 }).unwrap();
    assert_eq!(agents(one), ["heard", "heard", "silent"]);
    assert_refused(&margayctl(one, &["node", "delete", leaver.name()]), "4 addresses");

    // It looks for itself whether there are heartbeats.
    let deleted = margayctl(one, &["node", "delete", leaver.name(), "--yes", "-o", "json"]);

    assert!(deleted.status.success(), "{deleted:?}");
    let deleted: Value = serde_json::from_slice(&deleted.stdout).unwrap();
    assert_eq!(deleted["endpoints"], json!([format!("podnet/{}/eth0", gone.container_id())]));
    assert_eq!(deleted["addresses"].as_array().unwrap().len(), 4, "{deleted}");
    assert!(had.iter().all(|ip| deleted["addresses"].as_array().unwrap().contains(&json!(ip))));
    assert_eq!(agents(one), ["heard", "heard"]);
    for node in [one, other] {
        wait_until("nothing leads to the node", || {
            had.iter().all(|ip| !is_routed(node, *ip) && !knows(node, *ip))
        });
    }
    let again = margayctl(one, &["node", "delete", leaver.name(), "--yes", "--force"]);
    assert_refused(&again, leaver.name());

    // What it had can be claimed, and all that stays goes on.
    let mut asking = other.network("Always");
    asking["args"] = json!({"cni": {"ips": had}});
    pods.push(other.add("heir", &asking));
    let block = margayctl(one, &["ipam", "show", &had[0].to_string(), "-o", "json"]);
    let block: Value = serde_json::from_slice(&block.stdout).unwrap();
    assert_eq!(block["block_node"], other.name(), "{block}");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn doctor_reads_the_records_of_all_nodes_once_however_often_it_looks() {
    const LARGE: usize = 1_000_000;
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 1) else { return };
    let etcd = cluster.etcd().endpoints()[0].trim_start_matches("http://").to_owned();
    let node = &cluster.nodes()[0];
    let _pod = node.add("one", &node.network("Never"));
    // Of another node, and damaged, so that it is seen to be read.
    let large = vec![b'x'; LARGE];
    cluster.store().backend().create("handles/podnet/large/eth0", &large).unwrap();
    node.enter(|| run(&["ip", "route", "add", "10.244.9.9", "dev", UPLINK, "proto", "77"]));
    let before = sent(&etcd);

    let looked = margayctl(node, &["doctor", "-o", "json"]);

    let sent = sent(&etcd) - before;
    let found = String::from_utf8(looked.stdout).unwrap();
    assert!(found.contains("leftover-route"), "it looks twice: {found}");
    assert!(found.contains("handles/podnet/large/eth0"), "{found}");
    assert!((LARGE..2 * LARGE).contains(&sent), "{sent} bytes");
}

/// How many bytes etcd has sent to its clients.
fn sent(etcd: &str) -> usize {
    let mut stream = TcpStream::connect(etcd).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let name = "etcd_network_client_grpc_sent_bytes_total ";
    let bytes = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    bytes.parse::<f64>().unwrap() as usize
}

/// `margayctl` on a node, with the configurations of its network and of its agent.
fn margayctl(node: &Member, arguments: &[&str]) -> Output {
    let network = node.network("Always");
    let (name, version) = (&network["name"], &network["cniVersion"]);
    let list = json!({"cniVersion": version, "name": name, "plugins": [network]});
    let configurations = node.path("net.d");
    fs::create_dir_all(&configurations).unwrap();
    fs::write(configurations.join("10-podnet.conflist"), list.to_string()).unwrap();
    let mut command = Command::new(plugin_directory().join("margayctl"));
    command.arg("--config").arg(configurations);
    command.arg("--agent-config").arg(node.path("agent.json"));
    command.args(arguments).stdin(Stdio::null());
    node.enter(|| command.output()).unwrap()
}

fn assert_refused(output: &Output, because: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(because), "{stderr}");
}

fn nodes(node: &Member) -> Vec<Value> {
    let listed = margayctl(node, &["node", "list", "-o", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["datastore"], "etcd");
    listed["nodes"].as_array().unwrap().clone()
}

fn agents(node: &Member) -> Vec<String> {
    nodes(node).iter().map(|row| row["agent"].as_str().unwrap().to_owned()).collect()
}

/// Whether a route of the node's agent leads to the address.
fn is_routed(node: &Member, address: IpAddr) -> bool {
    node.remote_routes().iter().any(|route| route.destination.contains(address))
}

/// Whether the programs of the node know a way to the address.
fn knows(node: &Member, address: IpAddr) -> bool {
    let datapath = NodeDatapath::open(&node.bpffs_root()).unwrap();
    datapath.is_some_and(|datapath| datapath.remotes().get(address).unwrap().is_some())
}
