//! A node: the calling thread in namespaces of its own, with a BPF file system, a state directory
//! and an uplink to a world outside.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use margay::netlink::{LinkInfo, Netlink};
use margay_abi::Counter;
use margay_datapath::Datapath;
use margay_datastore::testing::etcd::EtcdCluster;
use margay_datastore::{Sqlite, Store};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::namespace::{self, NamedNetns};
use crate::pod::Pod;
use crate::requirements;

/// Address of the node on its uplink.
pub const NODE_V4: &str = "192.168.77.1";
/// Address of the world on the node's uplink.
pub const WORLD_V4: &str = "192.168.77.2";
/// IPv6 address of the node on its uplink.
pub const NODE_V6: &str = "fd77::1";
/// IPv6 address of the world on the node's uplink.
pub const WORLD_V6: &str = "fd77::2";
/// Name of the node's uplink.
pub const UPLINK: &str = "uplink0";

/// A node. The thread that made it is in the node's namespaces.
#[derive(Debug)]
pub struct Node {
    // Fields are dropped in this order: what is mounted in the directory goes first.
    world: NamedNetns,
    directory: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let bpffs = self.path("bpf");
        let unmounted = unmount(&bpffs, UnmountFlags::DETACH).map_err(std::io::Error::from);
        namespace::report(unmounted, &bpffs);
    }
}

impl Node {
    /// Turns the calling thread into a node, or records a skip where the machine does not let it.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !requirements::root() {
            return None;
        }
        namespace::isolate_thread();
        Some(Self::here())
    }

    /// Makes a node of the calling thread's network namespace, which is empty.
    pub(crate) fn here() -> Self {
        let directory = tempfile::Builder::new().prefix("margay-test-").tempdir().expect("tempdir");
        for name in ["bpf", "netns", "state", "run"] {
            fs::create_dir(directory.path().join(name)).expect("make a directory");
        }
        mount_bpffs(&directory.path().join("bpf"));
        namespace::set_loopback_up();
        let world = NamedNetns::create(directory.path().join("netns/world"));
        let node = Self { world, directory };
        node.make_uplink();
        node
    }

    /// The directory of the node, which goes with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the directory of the node.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The namespace behind the node's uplink.
    #[must_use]
    pub fn world(&self) -> &NamedNetns {
        &self.world
    }

    /// Makes a sandbox without any interface but loopback. The name is its container ID.
    #[must_use]
    pub fn sandbox(&self, name: &str) -> Pod<'_> {
        let netns = NamedNetns::create(self.path("netns").join(name));
        Pod::new(self, name, netns)
    }

    /// The network configuration that the tests start from: dual stack, everything that has a
    /// place in a directory of the node.
    #[must_use]
    pub fn network(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "podnet",
            "type": "margay",
            "log_level": "debug",
            "nodename": "node-under-test",
            "state_dir": self.path("state"),
            "run_dir": self.path("run"),
            "bpffs_root": self.bpffs_root(),
            "ipam": {
                "type": "margay-ipam",
                "pools": [{"cidr": "10.244.0.0/24"}, {"cidr": "fd00:10:244::/112"}],
            },
        })
    }

    /// The same, with pools that ask for masquerading.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn network_with_nat(&self) -> Value {
        let mut network = self.network();
        for pool in network["ipam"]["pools"].as_array_mut().expect("pools") {
            pool["nat_outgoing"] = json!(true);
        }
        network
    }

    /// Where the node's pins are.
    #[must_use]
    pub fn bpffs_root(&self) -> PathBuf {
        self.path("bpf").join("margay")
    }

    /// Those of this version of the map layouts.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs_root().join(margay_abi::ABI_VERSION.to_string())
    }

    /// The node's pinned programs and maps.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    pub fn datapath(&self) -> Datapath {
        Datapath::open(&self.bpffs_root()).expect("open the pins").expect("pins")
    }

    /// Packets that the programs have counted.
    ///
    /// # Panics
    /// When there are no programs.
    #[must_use]
    pub fn packets(&self, counter: Counter) -> u64 {
        let stats = self.datapath().stats().expect("stats");
        stats.into_iter().filter(|(row, _)| *row == counter).map(|(_, row)| row.packets).sum()
    }

    /// The node's datastore.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(Sqlite::open(&self.path("state/margay.db")).expect("open the datastore"))
    }

    /// Runs `work` with a netlink socket of the node's namespace.
    pub fn netlink<T>(&self, work: impl AsyncFnOnce(Netlink) -> T) -> T {
        block_on(async { work(Netlink::open().expect("open netlink")).await })
    }

    /// The node's links but for its loopback and its uplink.
    #[must_use]
    pub fn pod_links(&self) -> Vec<LinkInfo> {
        let links = self.netlink(async |netlink| netlink.links().await.expect("links"));
        links.into_iter().filter(|link| link.name != "lo" && link.name != UPLINK).collect()
    }

    /// Another boot ID, and a BPF file system and a run directory that are empty. Ending the pods
    /// is left to the test.
    ///
    /// # Panics
    /// When something else holds the BPF file system.
    pub fn reboot(&self) {
        self.change_boot_id();
        unmount(self.path("bpf"), UnmountFlags::empty()).expect("unmount the BPF file system");
        mount_bpffs(&self.path("bpf"));
        fs::remove_dir_all(self.path("run")).expect("empty the run directory");
        fs::create_dir(self.path("run")).expect("make the run directory");
    }

    /// Another boot ID alone.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn change_boot_id(&self) {
        static BOOTS: AtomicU32 = AtomicU32::new(0);
        let boot_id = self.path("boot_id");
        let is_mounted = boot_id.exists();
        let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
        fs::write(&boot_id, format!("00000000-1111-2222-3333-{boot:012}\n")).expect("boot ID");
        if !is_mounted {
            mount_bind(&boot_id, "/proc/sys/kernel/random/boot_id").expect("mount a boot ID");
        }
    }

    /// Runs a command in the node's namespace and returns its standard output.
    ///
    /// # Panics
    /// When it cannot be started or fails.
    pub fn run(&self, command: &[&str]) -> String {
        run(command)
    }

    fn make_uplink(&self) {
        let world = self.world.path().to_str().expect("path").to_owned();
        let ip = |line: String| run(&line.split_whitespace().collect::<Vec<_>>());
        ip(format!("ip link add {UPLINK} mtu 1500 type veth peer name eth0"));
        // By the namespace's path: `ip` knows no namespace by its file descriptor.
        ip(format!("ip link set eth0 netns {world}"));
        ip(format!("ip addr add {NODE_V4}/24 dev {UPLINK}"));
        ip(format!("ip addr add {NODE_V6}/64 dev {UPLINK} nodad"));
        ip(format!("ip link set {UPLINK} up"));
        self.world.enter(|| {
            ip(format!("ip addr add {WORLD_V4}/24 dev eth0"));
            ip(format!("ip addr add {WORLD_V6}/64 dev eth0 nodad"));
            ip("ip link set eth0 up".to_owned());
            ip(format!("ip route add default via {NODE_V4}"));
            ip(format!("ip route add default via {NODE_V6}"));
        });
        ip(format!("ip route add default via {WORLD_V4}"));
        ip(format!("ip route add default via {WORLD_V6}"));
    }
}

fn mount_bpffs(path: &Path) {
    mount("bpf", path, "bpf", MountFlags::empty(), None).expect("mount a BPF file system");
}

/// The node's address of a family.
#[must_use]
pub fn node_address(ipv4: bool) -> IpAddr {
    let address = if ipv4 { NODE_V4 } else { NODE_V6 };
    address.parse().expect("address")
}

/// A network configuration, with its records in etcd.
#[must_use]
pub fn on_etcd(mut network: Value, cluster: &EtcdCluster) -> Value {
    let conf = cluster.conf();
    network["datastore_type"] = json!("etcdv3");
    network["etcd_endpoints"] = json!(conf.endpoints.join(","));
    if let (Some(ca), Some(client)) = (conf.ca_cert_file, conf.client_cert) {
        network["etcd_ca_cert_file"] = json!(ca);
        network["etcd_cert_file"] = json!(client.cert_file);
        network["etcd_key_file"] = json!(client.key_file);
    }
    network
}

/// Runs `work` on a tokio runtime of the calling thread.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.expect("runtime").block_on(work)
}

/// Runs a command in the calling thread's namespaces and returns its standard output.
///
/// # Panics
/// When it cannot be started or fails.
pub fn run(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {}: {error}", command[0]));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The directory that the plugins under test are in: that of this test's own build.
///
/// # Panics
/// When they have not been built.
#[must_use]
pub fn plugin_directory() -> PathBuf {
    let test = std::env::current_exe().expect("path of the running test");
    let built = test.ancestors().find(|path| path.join("margay").is_file());
    let built = built.expect("no plugin beside the tests: `cargo xtask test` builds both");
    Path::new(built).to_owned()
}

/// The directory that the reference plugins are in, wherever a distribution installs them.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn reference_plugin_directory() -> PathBuf {
    let places = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"].map(PathBuf::from);
    let found = places.into_iter().find(|place| place.join("host-local").is_file());
    found.expect("no reference plugins: `cargo xtask setup` installs them")
}
