//! What goes on when something is lost: members of etcd, all of it, the network between the nodes.

use std::thread;
use std::time::{Duration, Instant};

use margay_tests::cluster::{Cluster, Families, Layout, MemberPod, pairs, wait_until};
use margay_tests::traffic::{Place, answers_ping, assert_ping, assert_tcp};
use serde_json::{Value, json};

use crate::stream::{Counters, Stream};

#[test]
fn the_loss_of_a_member_of_etcd_is_not_noticed() {
    let Some(mut cluster) = Cluster::with(Layout::OneSubnet, Families::Both, 2, 3) else { return };
    cluster.start_agents();
    let mut pods = one_pod_each(&cluster, "before");

    for member in 0..3 {
        cluster.etcd().kill(member);
        pods.extend(one_pod_each(&cluster, &format!("without-{member}")));
        cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
        cluster.etcd().restart(member);
    }
}

#[test]
fn without_etcd_pods_go_on_adds_say_try_again_and_agents_go_on_when_it_is_back() {
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let mut pods = one_pod_each(&cluster, "before");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());

    let counters = Counters::default();
    let lost = thread::scope(|scope| {
        let stream = Stream::start(scope, &counters, (&pods[0], &pods[1]), true);
        stream.wait_for(20);
        cluster.etcd().kill(0);
        let [one, other] = cluster.nodes() else { panic!("two nodes") };

        let (code, message) = one.add_fails("during", &hasty(one.network("Always")));
        assert_eq!(code, 11, "{message}");
        // One agent goes on without, and one starts without.
        other.kill_agent();
        other.start_agent();
        for (from, to) in pairs(&pods) {
            assert_tcp(from, to, to.address(true));
            assert_ping(from, to.address(false));
        }
        wait_until("it says what it lacks", || ready(other).contains("not been read"));
        stream.wait_for(100);
        cluster.etcd().restart(0);
        stream.wait_for(100);
        stream.lost()
    });

    assert_eq!(lost, 0);
    pods.extend(one_pod_each(&cluster, "after"));
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    for node in cluster.nodes() {
        wait_until("the agent is ready", || ready(node).contains("200 OK"));
    }
}

#[test]
fn a_minute_without_etcd_costs_no_packet_and_what_came_meanwhile_is_made_good() {
    const OUTAGE: Duration = Duration::from_secs(60);
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    for node in cluster.nodes() {
        node.start_agent_with(&json!({"upkeep_interval_seconds": 1, "upkeep_grace_seconds": 1}));
    }
    let mut pods = one_pod_each(&cluster, "before");
    let leaving = cluster.nodes()[0].add("leaving", &cluster.nodes()[0].network("CrossSubnet"));
    cluster.wait_until_all_reach_each_other(&[&pods[0], &pods[1], &leaving]);

    let counters = [Counters::default(), Counters::default()];
    let lost = thread::scope(|scope| {
        let streams = [true, false].map(|ipv4| {
            let counters = &counters[usize::from(ipv4)];
            Stream::start(scope, counters, (&pods[0], &pods[1]), ipv4)
        });
        streams[0].wait_for(20);
        cluster.etcd().kill(0);
        let since = Instant::now();
        let [one, other] = cluster.nodes() else { panic!("two nodes") };
        one.del(&leaving, &hasty(one.network("CrossSubnet")));
        for attempt in 0.. {
            let node = if attempt % 2 == 0 { one } else { other };
            let name = format!("during-{attempt}");
            let (code, message) = node.add_fails(&name, &hasty(node.network("CrossSubnet")));
            assert_eq!(code, 11, "{message}");
            for stream in &streams {
                stream.wait_for(20);
            }
            if since.elapsed() >= OUTAGE {
                break;
            }
        }
        cluster.etcd().restart(0);
        for stream in &streams {
            stream.wait_for(100);
        }
        streams.map(Stream::lost)
    });

    assert_eq!(lost, [0, 0]);
    for node in cluster.nodes() {
        wait_until("the agent is ready", || ready(node).contains("200 OK"));
    }
    wait_until("what the DEL put off is removed", || {
        cluster.store().endpoints("podnet").unwrap().len() == pods.len()
    });
    pods.extend(one_pod_each(&cluster, "after"));
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn a_partition_of_the_network_heals() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 2) else { return };
    cluster.start_agents();
    let mut pods = one_pod_each(&cluster, "before");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());

    cluster.set_subnet(2, "down");
    assert!(!answers_ping(&pods[0], pods[1].address(true)));
    pods.push(cluster.nodes()[0].add("during", &cluster.nodes()[0].network("CrossSubnet")));
    cluster.set_subnet(2, "up");

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn an_agent_tells_of_its_work_in_numbers() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    for node in cluster.nodes() {
        // It counts the node's addresses.
        node.start_agent_with(&json!({"upkeep_interval_seconds": 1}));
    }
    let pods = one_pod_each(&cluster, "one");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let node = &cluster.nodes()[0];

    for line in [
        "margay_remote_routes 4",
        "margay_passes_total{result=\"ok\"}",
        "margay_pool_addresses{pool=\"10.244.0.0/16\"} 2",
        "margay_blocks{pool=\"10.244.0.0/16\",node=\"own\"} 1",
        "margay_map_entries{map=\"pods_v4\"} 1",
        "margay_packets_total{verdict=\"stack_not_local\"}",
        "margay_datastore_request_seconds_count{operation=\"list\"}",
        "margay_nodes{state=\"silent\"} 0",
    ] {
        // Some are counted with each pass, of which there is one in 30 seconds.
        wait_until(&format!("the metrics have {line}"), || get(node, "/metrics").contains(line));
    }
    assert!(get(node, "/healthz").contains("200 OK"));
    assert!(ready(node).contains("200 OK"));
    assert!(get(node, "/else").contains("404"));
}

fn one_pod_each(cluster: &Cluster, name: &str) -> Vec<MemberPod> {
    cluster.nodes().iter().map(|node| node.add(name, &node.network("CrossSubnet"))).collect()
}

/// With deadlines that a test can wait for.
pub(crate) fn hasty(mut network: Value) -> Value {
    for key in ["etcd_connect_timeout_ms", "etcd_request_timeout_ms", "etcd_verb_timeout_ms"] {
        network[key] = json!(1000);
    }
    network
}

fn ready(node: &impl Place) -> String {
    get(node, "/readyz")
}

/// What the agent answers, headers and all; nothing if it does not.
fn get(node: &impl Place, path: &str) -> String {
    use std::io::{Read, Write};
    let answer = || {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9091")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    node.enter(answer).unwrap_or_default()
}
