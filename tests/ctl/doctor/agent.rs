//! An agent that does not answer, is not done, or is not heard of.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use margay_datapath::Remote;
use margay_datastore::testing::etcd::EtcdCluster;
use margay_datastore::{AssignRequest, Attachment, Heartbeat, Ipam, Pool, Store};
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::on_etcd;
use serde_json::{Value, json};

use super::Diagnosis;

#[test]
fn an_agent_that_a_cluster_needs_and_that_does_not_do_its_work_is_named() {
    let Some(node) = Node::new() else { return };
    let cluster = EtcdCluster::start();
    let network = on_etcd(node.network(), &cluster);
    let pod = node.sandbox("a");
    pod.add(&network);
    let ctl = Ctl::new(&node, &network);

    // As long as it is alone, nobody needs one.
    Diagnosis::of(&ctl).assert_only(&[]);
    let store = Store::new(cluster.open());
    store.update_node("other", |_| ()).unwrap();
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("agent-silent", "no configuration of an agent");
    diagnosis.assert_only(&["agent-silent"]);

    // A port that nobody has, and then one that answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    configure_agent(&node, &network, address);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("agent-silent", "does not answer");
    diagnosis.assert_only(&["agent-silent"]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    configure_agent(&node, &network, listener.local_addr().unwrap());
    thread::spawn(move || serve(&listener));
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("agent-not-ready", "no route to 10.0.0.1");
    diagnosis.assert_only(&["agent-not-ready"]);

    store.put_heartbeat(&Heartbeat { node: "node-under-test".to_owned(), at: 1 }).unwrap();
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("heartbeat-stale", "this node was heard of");
    diagnosis.assert_only(&["agent-not-ready", "heartbeat-stale"]);

    give_another_node_a_block(&store);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("remote-route-missing", "10.246.0.64/26 of node other");
    node.run(&["ip", "route", "add", "10.246.0.64/26", "via", "192.168.77.2", "proto", "78"]);
    Diagnosis::of(&ctl).assert_only(&["agent-not-ready", "heartbeat-stale"]);

    assert_entries_are_held_against_the_datastore(&node, &store, &ctl);
    node.run(&["ip", "route", "del", "10.246.0.64/26"]);
    Diagnosis::of(&ctl).assert_found("remote-route-missing", "10.246.0.64/26 of node other");
    give_up_blocks_of_another_node(&store);
    Diagnosis::of(&ctl).assert_only(&["agent-not-ready", "heartbeat-stale"]);
}

/// With a block of the node "other", which has a route.
fn assert_entries_are_held_against_the_datastore(node: &Node, store: &Store, ctl: &Ctl<'_>) {
    let datapath = node.datapath();
    let (block, elsewhere) =
        ("10.246.0.64/26".parse().unwrap(), "10.246.0.128/26".parse().unwrap());
    let to = |node: &str| {
        let node: Ipv4Addr = node.parse().unwrap();
        Remote {
            node: node.to_ipv6_mapped().octets(),
            mtu: 1500,
            mac: [0; 6],
            mode: 1,
            reserved: 0,
        }
    };
    store
        .update_node("other", |node| node.addresses = vec!["192.168.77.9/24".parse().unwrap()])
        .unwrap();

    datapath.remotes().set(block, &to("192.168.77.9")).unwrap();
    Diagnosis::of(ctl).assert_only(&["agent-not-ready", "heartbeat-stale"]);
    datapath.remotes().set(block, &to("192.168.77.8")).unwrap();
    let not_its = "10.246.0.64/26 is of node other, and leads to 192.168.77.8";
    Diagnosis::of(ctl).assert_found("remote-entry-wrong", not_its);
    datapath.remotes().remove(block).unwrap();
    datapath.remotes().set(elsewhere, &to("192.168.77.9")).unwrap();
    let nobodys = "10.246.0.128/26 leads to 192.168.77.9, and no other node has it";
    Diagnosis::of(ctl).assert_found("remote-entry-wrong", nobodys);
    datapath.remotes().remove(elsewhere).unwrap();
}

#[test]
fn a_node_whose_interfaces_another_plugin_makes_needs_no_agent() {
    let Some(node) = Node::new() else { return };
    let cluster = EtcdCluster::start();
    let network = on_etcd(node.network(), &cluster);
    let pod = node.sandbox("a");
    pod.add(&network);
    give_another_node_a_block(&Store::new(cluster.open()));
    let ctl = Ctl::new(&node, &network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("agent-silent", "no configuration");
    diagnosis.assert_found("remote-route-missing", "of node other");

    let mut of_bridge = json!({"cniVersion": "1.0.0", "name": "podnet", "type": "bridge"});
    for key in ["ipam", "nodename", "datastore_type", "etcd_endpoints"] {
        of_bridge[key] = network[key].clone();
    }
    of_bridge["ipam"]["type"] = json!("margay-ipam");
    for key in ["nodename", "state_dir", "run_dir"] {
        of_bridge["ipam"][key] = network[key].clone();
    }
    ctl.install(&of_bridge);

    let diagnosis = Diagnosis::of(&ctl);
    let of_agents = ["agent-silent", "remote-route-missing"];
    assert!(!diagnosis.ids().iter().any(|id| of_agents.contains(id)), "{diagnosis:#?}");
}

/// Gives the node an agent's configuration that goes with the network's.
pub(super) fn configure_agent(node: &Node, network: &Value, address: SocketAddr) {
    let mut agent = json!({"metrics_address": address.to_string()});
    for key in
        ["nodename", "state_dir", "run_dir", "bpffs_root", "datastore_type", "etcd_endpoints"]
    {
        agent[key] = network[key].clone();
    }
    fs::write(node.path("agent.json"), agent.to_string()).unwrap();
}

/// An agent that turns and is not done. Ends with the test's process.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut request = [0; 1024];
        let len = stream.read(&mut request).unwrap();
        let is_health = request[..len].starts_with(b"GET /healthz");
        let answer = match is_health {
            true => "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n",
            false => "HTTP/1.1 503 Service Unavailable\r\n\r\nno route to 10.0.0.1\n",
        };
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

fn give_another_node_a_block(store: &Store) {
    let request = AssignRequest {
        attachment: Attachment::new("podnet", "elsewhere", "eth0").unwrap(),
        pod: None,
        netns: None,
        pools: vec![Pool::new("10.246.0.0/24".parse().unwrap())],
        ipv4: true,
        ipv6: false,
        requested: vec!["10.246.0.65".parse().unwrap()],
        strict_affinity: false,
    };
    Ipam::new(store, "other", "boot").assign(&request).unwrap();
}

fn give_up_blocks_of_another_node(store: &Store) {
    for block in store.backend().list("blocks/", None).unwrap() {
        let mut record: Value = serde_json::from_slice(&block.value).unwrap();
        if record["node"] == json!("other") {
            record["node"] = json!("");
            let record = record.to_string();
            store.backend().update(&block.key, record.as_bytes(), block.revision).unwrap();
            for block in store.misplaced_blocks().unwrap() {
                store.place_block(&block).unwrap();
            }
        }
    }
}
