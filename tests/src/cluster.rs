//! Several nodes: network namespaces on a network between them, each with its own BPF file system,
//! directories and agent, and a real etcd.
//!
//! The calling thread's own namespace is the network between the nodes: a bridge for each subnet, the
//! router between them, and the world outside. The nodes see no more of each other than packets.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use margay::netlink::{LinkInfo, Netlink, RemoteRoute};
use margay_datastore::Store;
use margay_datastore::testing::etcd::{EtcdCluster, EtcdOptions};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cni::Invocation;
use crate::namespace::{self, NamedNetns};
use crate::pod::address;
use crate::traffic::{Place, answers_ping};
use crate::{node, requirements};

/// How long a test waits for the agents to do something before it fails.
pub const AGENTS_PATIENCE: Duration = Duration::from_secs(60);
/// Name of a node's interface on the network between the nodes.
pub const UPLINK: &str = "uplink0";

/// How the nodes lie on the network between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All on one subnet.
    OneSubnet,
    /// The last node on another, behind a router.
    TwoSubnets,
}

/// Which addresses the network between the nodes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Of both families.
    Both,
    /// Of IPv4 alone.
    Ipv4,
    /// Of IPv6 alone.
    Ipv6,
}

/// The nodes.
#[derive(Debug)]
pub struct Cluster {
    // Fields are dropped in this order: what is mounted in the directory goes first.
    nodes: Vec<Member>,
    etcd: EtcdCluster,
    layout: Layout,
    families: Families,
    directory: TempDir,
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Member {
    name: String,
    /// The subnet that it is on, and its number there.
    place: (u8, u8),
    directory: PathBuf,
    /// Keys of the configuration that say where the datastore is.
    datastore: Value,
    netns: NamedNetns,
    agent: Mutex<Option<Child>>,
}

/// A pod of a cluster.
#[derive(Debug)]
pub struct MemberPod {
    container_id: String,
    netns: NamedNetns,
    result: Value,
}

impl Cluster {
    /// Makes this many nodes without any pod or agent, or records a skip where the machine does not let
    /// it.
    #[must_use]
    pub fn new(layout: Layout, count: u8) -> Option<Self> {
        Self::with(layout, Families::Both, count, 1)
    }

    /// The same, where the network between the nodes has these families, and etcd so many members.
    ///
    /// # Panics
    /// When something cannot be made.
    #[must_use]
    pub fn with(layout: Layout, families: Families, count: u8, members: u8) -> Option<Self> {
        if !requirements::root() {
            return None;
        }
        namespace::isolate_thread();
        namespace::set_loopback_up();
        let directory = tempfile::Builder::new().prefix("margay-test-").tempdir().expect("tempdir");
        fs::create_dir(directory.path().join("netns")).expect("make a directory");
        make_subnets(layout, families);
        let address = underlay_address((1, 254), families != Families::Ipv6);
        let addresses = vec![address; usize::from(members)];
        let etcd = EtcdCluster::start_with(EtcdOptions { addresses, ..EtcdOptions::default() });
        let mut cluster = Self { nodes: Vec::new(), etcd, layout, families, directory };
        (0..count).for_each(|index| cluster.add_node(index, count));
        Some(cluster)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Member] {
        &self.nodes
    }

    /// One more node, on the first subnet.
    pub fn join(&mut self) -> &Member {
        let index = u8::try_from(self.nodes.len()).expect("few nodes");
        self.add_node(index, u8::MAX);
        self.nodes.last().expect("the node")
    }

    /// The datastore that all nodes share.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(self.etcd.open())
    }

    /// What the datastore runs on.
    pub fn etcd(&mut self) -> &mut EtcdCluster {
        &mut self.etcd
    }

    /// Cuts a subnet off (`down`), or takes it back (`up`).
    pub fn set_subnet(&self, subnet: u8, state: &str) {
        ip(&format!("link set subnet{subnet} {state}"));
        if state == "up" && self.families != Families::Ipv4 {
            // An interface that goes down loses its IPv6 addresses.
            let address = underlay_address((subnet, 254), false);
            ip(&format!("addr replace {address}/64 dev subnet{subnet} nodad"));
        }
    }

    /// Starts the agent of each node.
    pub fn start_agents(&self) {
        self.nodes.iter().for_each(Member::start_agent);
    }

    /// Waits until every pod reaches every other one over both families.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_all_reach_each_other(&self, pods: &[&MemberPod]) {
        for (from, to) in pairs(pods) {
            for ipv4 in [true, false] {
                wait_until_reached(*from, to.address(ipv4));
            }
        }
    }

    fn add_node(&mut self, index: u8, count: u8) {
        let is_apart = self.layout == Layout::TwoSubnets && index + 1 == count;
        let place = (if is_apart { 2 } else { 1 }, index + 1);
        let name = format!("node-{}", char::from(b'a' + index));
        let directory = self.directory.path().join(&name);
        for part in ["bpf", "run", "state", "netns"] {
            fs::create_dir_all(directory.join(part)).expect("make a directory");
        }
        mount("bpf", directory.join("bpf"), "bpf", MountFlags::empty(), None)
            .expect("mount a BPF file system");
        let netns = NamedNetns::create(self.directory.path().join("netns").join(&name));
        let port = format!("port{index}");
        ip(&format!("link add {port} type veth peer name {UPLINK} netns {}", show(netns.path())));
        ip(&format!("link set {port} master subnet{} up", place.0));
        netns.enter(|| {
            // As strict as a host can be: what comes from where no answer would go is dropped.
            for scope in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "1")
                    .expect("sysctl");
            }
            add_addresses(UPLINK, place, self.families);
            ip(&format!("link set {UPLINK} up"));
            let router = (place.0, 254);
            if self.families != Families::Ipv6 {
                ip(&format!("route add default via {}", underlay_address(router, true)));
            }
            if self.families != Families::Ipv4 {
                ip(&format!("route add default via {}", underlay_address(router, false)));
            }
        });
        let endpoints = self.etcd.endpoints().join(",");
        let datastore = json!({"datastore_type": "etcdv3", "etcd_endpoints": endpoints});
        let agent = Mutex::new(None);
        self.nodes.push(Member { name, place, directory, datastore, netns, agent });
    }
}

impl Place for Member {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.enter(work)
    }
}

impl Member {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the network between the nodes.
    #[must_use]
    pub fn address(&self, ipv4: bool) -> IpAddr {
        underlay_address(self.place, ipv4)
    }

    /// A path in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where its pins are.
    #[must_use]
    pub fn bpffs_root(&self) -> PathBuf {
        self.path("bpf").join("margay")
    }

    /// The network configuration that the tests start from, with pools of this mode.
    #[must_use]
    pub fn network(&self, vxlan_mode: &str) -> Value {
        let pool = |cidr| json!({"cidr": cidr, "vxlan_mode": vxlan_mode});
        self.configuration(&json!({
            "cniVersion": "1.1.0",
            "name": "podnet",
            "type": "margay",
            "ipam": {
                "type": "margay-ipam",
                "pools": [pool("10.244.0.0/16"), pool("fd00:10:244::/64")],
            },
        }))
    }

    /// What the network's and the agent's configurations have in common, with these keys besides.
    fn configuration(&self, further: &Value) -> Value {
        let mut configuration = json!({
            "nodename": self.name,
            "state_dir": self.path("state"),
            "run_dir": self.path("run"),
            "bpffs_root": self.bpffs_root(),
            "log_level": "debug",
        });
        let keys = configuration.as_object_mut().expect("an object");
        for more in [&self.datastore, further] {
            keys.extend(more.as_object().expect("an object").clone());
        }
        configuration
    }

    /// Makes a pod.
    ///
    /// # Panics
    /// When the ADD fails.
    #[must_use]
    pub fn add(&self, name: &str, network: &Value) -> MemberPod {
        let mut pod = self.sandbox(name);
        pod.result = self.execute("ADD", &pod, network);
        pod
    }

    /// Tries to make a pod, and says with which code and message that fails.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn add_fails(&self, name: &str, network: &Value) -> (u64, String) {
        let pod = self.sandbox(name);
        let invocation = self.invocation("ADD", &pod, network);
        self.enter(|| invocation.execute()).error()
    }

    /// Makes a pod without any interface but loopback.
    #[must_use]
    pub fn sandbox(&self, name: &str) -> MemberPod {
        let container_id = format!("{}-{name}", self.name);
        let netns = NamedNetns::create(self.path("netns").join(name));
        MemberPod { container_id, netns, result: Value::Null }
    }

    /// Takes a pod's network away.
    ///
    /// # Panics
    /// When the DEL fails.
    pub fn del(&self, pod: &MemberPod, network: &Value) {
        self.execute("DEL", pod, network);
    }

    /// An invocation of the network plugin for a pod of this node.
    #[must_use]
    pub fn invocation(&self, verb: &str, pod: &MemberPod, network: &Value) -> Invocation {
        let plugins = node::plugin_directory();
        Invocation::new("margay", verb, network)
            .env("CNI_PATH", show(&plugins))
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", show(pod.netns.path()))
            .env("CNI_IFNAME", "eth0")
    }

    fn execute(&self, verb: &str, pod: &MemberPod, network: &Value) -> Value {
        let invocation = self.invocation(verb, pod, network);
        self.enter(|| invocation.execute()).success()
    }

    /// Starts its agent, with a configuration that says where things are.
    pub fn start_agent(&self) {
        self.start_agent_with(&json!({}));
    }

    /// The same with further keys.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn start_agent_with(&self, further: &Value) {
        self.start_agent_under(&[], further);
    }

    /// The same, executed by this command.
    ///
    /// # Panics
    /// When it cannot be started, or runs already.
    pub fn start_agent_under(&self, wrapper: &[String], further: &Value) {
        let config = self.configuration(further);
        let path = self.path("agent.json");
        fs::write(&path, config.to_string()).expect("write the configuration");
        let log = File::options().create(true).append(true).open(self.path("agent.log"));
        let log = log.expect("open the log");
        let program = node::plugin_directory().join("margay-agent");
        let program = show(&program).to_owned();
        let mut words = wrapper.iter().chain([&program]);
        let mut command = Command::new(words.next().expect("a command"));
        command
            .args(words)
            .arg("--config")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = self.enter(|| command.spawn()).expect("start the agent");
        let before = self.agent.lock().expect("agent").replace(child);
        assert!(before.is_none(), "the agent runs already");
    }

    /// Kills its agent.
    ///
    /// # Panics
    /// When none runs.
    pub fn kill_agent(&self) {
        let mut agent = self.agent.lock().expect("agent").take().expect("an agent that runs");
        agent.kill().expect("kill the agent");
        agent.wait().expect("wait for the agent");
    }

    /// Ends its agent by SIGTERM.
    ///
    /// # Panics
    /// When none runs, or it does not end well.
    pub fn stop_agent(&self) {
        let mut agent = self.agent.lock().expect("agent").take().expect("an agent that runs");
        let pid = Pid::from_child(&agent);
        kill_process(pid, Signal::TERM).expect("signal the agent");
        let status = agent.wait().expect("wait for the agent");
        assert!(status.success(), "{status}\n{}", self.agent_log());
    }

    /// The number of its agent's process, while one runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.lock().expect("agent").as_ref().map(Child::id)
    }

    /// What its agents have logged.
    #[must_use]
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// Runs `work` with a netlink socket of the node.
    pub fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Netlink) -> T + Send) -> T {
        self.enter(|| node::block_on(async { work(Netlink::open().expect("open netlink")).await }))
    }

    /// The routes that its agent has made.
    #[must_use]
    pub fn remote_routes(&self) -> Vec<RemoteRoute> {
        self.netlink(async |netlink| netlink.remote_routes().await.expect("routes"))
    }

    /// A link of the node.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<LinkInfo> {
        self.netlink(async |netlink| netlink.link_by_name(name).await.expect("link"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Ok(mut agent) = self.agent.lock()
            && let Some(mut agent) = agent.take()
        {
            // It may have ended by itself.
            let _ended = agent.kill();
            let _status = agent.wait();
        }
        if std::thread::panicking() {
            eprintln!("agent of {}:\n{}", self.name, self.agent_log());
        }
        let bpffs = self.path("bpf");
        let unmounted = unmount(&bpffs, UnmountFlags::DETACH).map_err(std::io::Error::from);
        namespace::report(unmounted, &bpffs);
    }
}

impl Place for MemberPod {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.enter(work)
    }
}

impl MemberPod {
    /// Its address.
    #[must_use]
    pub fn address(&self, ipv4: bool) -> IpAddr {
        address(&self.result, ipv4)
    }

    /// The result of its ADD.
    #[must_use]
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its container ID.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// MTU of its interface.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        let link = self.enter(|| {
            node::block_on(async {
                let netlink = Netlink::open().expect("open netlink");
                netlink.link_by_name("eth0").await.expect("link")
            })
        });
        link.expect("eth0").mtu
    }
}

/// All ordered pairs of different ones.
pub fn pairs<T>(all: &[T]) -> impl Iterator<Item = (&T, &T)> {
    let others = |index: usize| {
        all.iter().enumerate().filter(move |(other, _)| *other != index).map(|(_, other)| other)
    };
    all.iter()
        .enumerate()
        .flat_map(move |(index, one)| others(index).map(move |other| (one, other)))
}

/// Waits until `address` answers.
///
/// # Panics
/// When that takes too long.
pub fn wait_until_reached(from: &impl Place, address: IpAddr) {
    wait_until(&format!("{address} answers"), || answers_ping(from, address));
}

/// Waits until a condition holds.
///
/// # Panics
/// When that takes too long.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + AGENTS_PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn make_subnets(layout: Layout, families: Families) {
    let subnets: &[u8] = match layout {
        Layout::OneSubnet => &[1],
        Layout::TwoSubnets => &[1, 2],
    };
    for subnet in subnets {
        let bridge = format!("subnet{subnet}");
        ip(&format!("link add {bridge} type bridge"));
        add_addresses(&bridge, (*subnet, 254), families);
        ip(&format!("link set {bridge} up"));
    }
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(switch), "1").expect("let it route");
    }
}

fn add_addresses(interface: &str, place: (u8, u8), families: Families) {
    if families != Families::Ipv6 {
        ip(&format!("addr add {}/24 dev {interface}", underlay_address(place, true)));
    }
    if families != Families::Ipv4 {
        ip(&format!("addr add {}/64 dev {interface} nodad", underlay_address(place, false)));
    }
}

fn underlay_address((subnet, number): (u8, u8), ipv4: bool) -> IpAddr {
    let text = match ipv4 {
        true => format!("192.168.{subnet}.{number}"),
        false => format!("fd99:{subnet}::{number}"),
    };
    text.parse().expect("address")
}

fn ip(arguments: &str) {
    let words: Vec<&str> = std::iter::once("ip").chain(arguments.split_whitespace()).collect();
    node::run(&words);
}

fn show(path: &Path) -> &str {
    path.to_str().expect("path")
}
