//! Agents that come, go and are killed, and nodes that join.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::{fs, io, thread};

use margay_datapath::NodeDatapath;
use margay_datastore::Topic;
use margay_tests::cluster::{AGENTS_PATIENCE, Cluster, Layout, Member, MemberPod, wait_until};
use margay_tests::node::{plugin_directory, run};
use margay_tests::traffic::Place;
use serde_json::json;

use crate::stream::{Counters, Stream};

#[test]
fn agents_that_are_killed_and_come_back_cost_no_packet() {
    for vxlan_mode in ["Always", "Never"] {
        let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
        cluster.start_agents();
        let pods = one_pod_each(&cluster, vxlan_mode);
        let [one, other] = &pods[..] else { panic!("two pods") };
        cluster.wait_until_all_reach_each_other(&[one, other]);
        wait_until("each node has a route for each block", || {
            let blocks = cluster.store().survey(Topic::Blocks).unwrap().1.len();
            cluster.nodes().iter().all(|node| node.remote_routes().len() == blocks)
        });
        let routes: Vec<_> =
            cluster.nodes().iter().map(|node| sorted(node.remote_routes())).collect();

        let counters = [Counters::default(), Counters::default()];
        let lost = thread::scope(|scope| {
            let [v4, v6] = [true, false]
                .map(|ipv4| Stream::start(scope, &counters[usize::from(ipv4)], (one, other), ipv4));
            v4.wait_for(50);
            for node in cluster.nodes() {
                node.kill_agent();
            }
            v4.wait_for(50);
            for node in cluster.nodes() {
                node.start_agent();
                wait_until("the agent has done its first pass", || {
                    node.agent_log().matches("agent starts").count() == 2
                        && since_its_start(node).contains("pass")
                });
                assert!(since_its_start(node).contains("nothing to change"), "all was there");
                v4.wait_for(50);
                node.stop_agent();
            }
            v6.wait_for(50);
            [v4.lost(), v6.lost()]
        });

        assert_eq!(lost, [0, 0], "{vxlan_mode}");
        for (node, before) in cluster.nodes().iter().zip(routes) {
            assert_eq!(sorted(node.remote_routes()), before, "nothing was made anew");
        }
    }
}

#[test]
fn a_node_that_joins_is_reached_by_all_and_reaches_all() {
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let mut pods = one_pod_each(&cluster, "Always");

    let node = cluster.join();
    node.start_agent();
    pods.push(node.add("one", &node.network("Always")));

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn an_agent_that_comes_after_the_pods_finds_them() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 2) else { return };
    let pods = one_pod_each(&cluster, "CrossSubnet");

    cluster.start_agents();

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn an_agent_keeps_its_ways_to_blocks_of_a_build_that_wrote_no_placements() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let pods = one_pod_each(&cluster, "Always");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let node = &cluster.nodes()[0];
    wait_until("a route for each block", || node.remote_routes().len() == 4);
    cluster.nodes().iter().for_each(Member::stop_agent);
    let before = sorted(node.remote_routes());
    let store = cluster.store();
    for placement in store.backend().list("placements/", None).unwrap() {
        store.backend().delete(&placement.key, None).unwrap();
    }

    node.start_agent();

    wait_until("the agent has done its first pass", || {
        node.agent_log().matches("agent starts").count() == 2
            && since_its_start(node).contains("pass")
    });
    assert!(since_its_start(node).contains("nothing to change"), "{}", node.agent_log());
    assert_eq!(sorted(node.remote_routes()), before);
    assert_eq!(store.misplaced_blocks().unwrap(), []);
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn an_agent_does_all_with_the_capabilities_that_its_unit_leaves_it() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let unit = include_str!("../../conf/margay-agent.service");
    let left = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let mut set = "-all".to_owned();
    for capability in left.split_whitespace() {
        set += &format!(",+{}", capability.strip_prefix("CAP_").unwrap().to_lowercase());
    }
    let wrapper = ["setpriv", "--bounding-set", &set, "--"].map(str::to_owned);
    for node in cluster.nodes() {
        node.start_agent_under(&wrapper, &json!({"upkeep_interval_seconds": 1}));
    }

    let pods = one_pod_each(&cluster, "Always");

    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    for node in cluster.nodes() {
        wait_until("programs that know the way", || {
            let datapath = NodeDatapath::open(&node.bpffs_root()).unwrap();
            datapath.is_some_and(|datapath| !datapath.remotes().entries().unwrap().is_empty())
        });
        let names = pods.iter().map(|pod| pod.result()["interfaces"][0]["name"].as_str().unwrap());
        let name = names.into_iter().find(|name| node.link(name).is_some()).unwrap();
        node.enter(|| drop(run(&["tc", "filter", "del", "dev", name, "ingress"])));
        wait_until("upkeep puts the filter back", || {
            node.enter(|| run(&["tc", "filter", "show", "dev", name, "ingress"]))
                .contains("from_pod")
        });
        assert!(!node.agent_log().contains("ERROR"), "{}", node.agent_log());
    }
}

#[test]
fn systemd_hears_that_the_agent_has_started_though_etcd_is_away_and_that_it_ends() {
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 1) else { return };
    cluster.etcd().kill(0);
    let node = &cluster.nodes()[0];
    let systemd = Systemd::listen(node.path("notify"));

    node.start_agent_under(&systemd.wrapper(), &json!({}));

    assert_eq!(systemd.hear(), "READY=1");
    node.enter(|| TcpStream::connect("127.0.0.1:9091")).expect("it serves its health");
    node.stop_agent();
    assert_eq!(systemd.hear(), "STOPPING=1");
}

#[test]
fn systemd_hears_nothing_of_an_agent_whose_configuration_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let systemd = Systemd::listen(directory.path().join("notify"));
    let config = directory.path().join("agent.json");
    fs::write(&config, r#"{"etcd_endpoint": "http://127.0.0.1:2379"}"#).unwrap();

    let mut agent = Command::new(plugin_directory().join("margay-agent"));
    let agent = agent.arg("--config").arg(config).env(NOTIFY_SOCKET, &systemd.path).output();

    assert_eq!(agent.unwrap().status.code(), Some(1));
    systemd.socket.set_nonblocking(true).unwrap();
    let heard = systemd.socket.recv(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(heard, Err(io::ErrorKind::WouldBlock));
}

#[test]
fn what_somebody_takes_away_comes_back() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    cluster.start_agents();
    let pods = one_pod_each(&cluster, "Always");
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    let node = &cluster.nodes()[0];
    let routes = sorted(node.remote_routes());

    node.netlink(async |netlink| {
        for route in netlink.remote_routes().await.unwrap() {
            netlink.delete_remote_route(route.destination).await.unwrap();
        }
    });
    wait_until("the routes are back", || sorted(node.remote_routes()) == routes);

    node.netlink(async |netlink| {
        let link = netlink.link_by_name(margay::naming::OVERLAY_DEVICE).await.unwrap().unwrap();
        netlink.delete_link(link.index).await.unwrap();
    });
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
}

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Who listens to what the agent tells of itself.
struct Systemd {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Systemd {
    fn listen(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(AGENTS_PATIENCE)).unwrap();
        Self { path, socket }
    }

    /// What executes an agent that is to tell.
    fn wrapper(&self) -> [String; 2] {
        ["env".to_owned(), format!("{NOTIFY_SOCKET}={}", self.path.display())]
    }

    fn hear(&self) -> String {
        let mut message = [0; 64];
        let bytes = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..bytes].to_vec()).unwrap()
    }
}

fn since_its_start(node: &Member) -> String {
    node.agent_log().rsplit("agent starts").next().unwrap().to_owned()
}

fn one_pod_each(cluster: &Cluster, vxlan_mode: &str) -> Vec<MemberPod> {
    let nodes = cluster.nodes().iter();
    nodes.map(|node| node.add("one", &node.network(vxlan_mode))).collect()
}

fn sorted(mut routes: Vec<margay::netlink::RemoteRoute>) -> Vec<margay::netlink::RemoteRoute> {
    routes.sort_by_key(|route| route.destination);
    routes
}
