//! Two nodes side by side, each with pods of its own, and the ways between them: the kernel's, which an
//! agent would make, and margay's fast path on top.
//!
//! The second node is a network namespace that the first keeps. Mounts are common to both, so what is
//! in either's directory is at hand from everywhere; what is in its network namespace,
//! [`Neighbours::enter`] leads to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use margay_abi::{Counter, Overlay, Remote, remote_mode};
use margay_datapath::{AttachMode, LoadOptions, NodeDatapath, NodeInterface};
use serde_json::{Value, json};

use crate::namespace::NamedNetns;
use crate::node::{self, Node};
use crate::pod::Pod;
use crate::traffic::Place;

/// The interface between the nodes.
pub const UNDERLAY: &str = "underlay0";
/// The VXLAN device.
pub const OVERLAY: &str = "margay-vxlan";
const VNI: u32 = 4096;
const VXLAN_PORT: u16 = 4789;
const UNDERLAY_MTU: u32 = 1500;

/// How packets get from one node to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In VXLAN over IPv4.
    Vxlan,
    /// In VXLAN over IPv6.
    VxlanV6,
    /// As they are.
    Plain,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::VxlanV6, Self::Plain];

    /// The longest packet that fits.
    #[must_use]
    pub fn mtu(self) -> u32 {
        match self {
            Self::Vxlan => UNDERLAY_MTU - 50,
            Self::VxlanV6 => UNDERLAY_MTU - 70,
            Self::Plain => UNDERLAY_MTU,
        }
    }

    fn mode(self) -> u8 {
        if self == Self::Plain { remote_mode::PLAIN } else { remote_mode::VXLAN }
    }

    /// The interface that pods' packets leave a node by.
    #[must_use]
    pub fn interface(self) -> (NodeInterface, &'static str) {
        match self {
            Self::Plain => (NodeInterface::Uplink, UNDERLAY),
            _ => (NodeInterface::Overlay, OVERLAY),
        }
    }
}

/// Two nodes.
pub struct Neighbours {
    // Fields are dropped in this order: the second is in a namespace that is a file of the first's.
    datapaths: [NodeDatapath; 2],
    second: Node,
    netns: NamedNetns,
    first: Node,
    way: Way,
}

impl Neighbours {
    /// Two nodes with routes to each other's pods, and margay's fast path loaded, but not yet told of
    /// the other. `None` where the machine does not let it.
    ///
    /// # Panics
    /// When one of the two cannot be made.
    #[must_use]
    pub fn new(way: Way) -> Option<Self> {
        let first = Node::new()?;
        let netns = NamedNetns::create(first.path("netns/second"));
        let second = netns.enter(Node::here);
        let datapaths = [&first, &second].map(|node| {
            let options = LoadOptions::new(node.path("run"));
            NodeDatapath::open_or_load(&node.bpffs_root(), &options).expect("load")
        });
        let nodes = Self { datapaths, second, netns, first, way };
        nodes.make_underlay();
        for near in [0, 1] {
            nodes.enter(near, || nodes.make_way(near));
        }
        Some(nodes)
    }

    /// The same with the fast path between them.
    #[must_use]
    pub fn connected(way: Way) -> Option<Self> {
        let nodes = Self::new(way)?;
        nodes.connect();
        Some(nodes)
    }

    /// A node, by its number. What it does in its network namespace has to be done inside of
    /// [`enter`](Self::enter).
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        if number == 0 { &self.first } else { &self.second }
    }

    /// A node's part of the fast path between nodes.
    #[must_use]
    pub fn datapath(&self, number: usize) -> &NodeDatapath {
        &self.datapaths[number]
    }

    /// How packets get from one to the other.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Runs `work` in a node's network namespace.
    pub fn enter<T: Send>(&self, number: usize, work: impl FnOnce() -> T + Send) -> T {
        if number == 0 { self.first.enter(work) } else { self.netns.enter(work) }
    }

    /// Makes a pod on a node, and returns it and what ADD said. Its MTU is what fits between nodes.
    ///
    /// # Panics
    /// When ADD fails.
    #[must_use]
    pub fn pod(&self, number: usize, name: &str) -> (Pod<'_>, Value) {
        self.pod_with(number, name, |network| network["mtu"] = json!(self.way.mtu()))
    }

    /// The same with another network configuration.
    ///
    /// # Panics
    /// When ADD fails.
    #[must_use]
    pub fn pod_with(
        &self,
        number: usize,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> (Pod<'_>, Value) {
        let mut network = self.node(number).network();
        let [v4, v6] = pools(number);
        network["ipam"]["pools"] = json!([{"cidr": v4.to_string()}, {"cidr": v6.to_string()}]);
        change(&mut network);
        let pod = self.node(number).sandbox(name);
        let result = self.enter(number, || pod.add(&network));
        (pod, result)
    }

    /// Packets that a node's programs have counted.
    #[must_use]
    pub fn packets(&self, number: usize, counter: Counter) -> u64 {
        let stats = self.datapaths[number].stats().expect("stats");
        stats[counter as usize].1.packets
    }

    /// Packets that both nodes have carried past the stack, there and back: sent by one and delivered
    /// by the other.
    #[must_use]
    pub fn fast_packets(&self, ipv4: bool) -> u64 {
        let (sent, delivered) = match ipv4 {
            true => (Counter::ToNodeV4, Counter::FromNodeV4),
            false => (Counter::ToNodeV6, Counter::FromNodeV6),
        };
        let sum = |counter| self.packets(0, counter) + self.packets(1, counter);
        sum(sent).min(sum(delivered))
    }

    /// Attaches the fast path's programs and tells both nodes of each other.
    pub fn connect(&self) {
        for near in [0, 1] {
            let (interface, name) = self.way.interface();
            self.enter(near, || {
                self.node(near).netlink(async |netlink| {
                    let links = netlink.links().await.expect("links");
                    let link = links.iter().find(|link| link.name == name).expect("interface");
                    let mode = AttachMode::Clsact;
                    let attached =
                        self.datapaths[near].attach(netlink.handle(), link.index, interface, mode);
                    attached.await.expect("attach");
                    if interface == NodeInterface::Overlay {
                        let [ifindex_v4, ifindex_v6] = match self.way {
                            Way::VxlanV6 => [0, link.index],
                            _ => [link.index, 0],
                        };
                        let overlay = Overlay {
                            ifindex_v4,
                            ifindex_v6,
                            vni: VNI,
                            port: VXLAN_PORT.to_be_bytes(),
                            mac: overlay_mac(near),
                        };
                        self.datapaths[near].set_overlay(&overlay).expect("overlay");
                    }
                });
            });
            self.datapaths[near].take_over_from_pods().expect("take over");
            self.tell(near);
        }
    }

    /// Tells a node of the other one's pods.
    pub fn tell(&self, near: usize) {
        let far = 1 - near;
        let node = match underlay_address(far, self.way != Way::VxlanV6) {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let remote = Remote {
            node: node.octets(),
            mtu: self.way.mtu(),
            mac: if self.way == Way::Plain { [0; 6] } else { overlay_mac(far) },
            mode: self.way.mode(),
            reserved: 0,
        };
        for pool in pools(far) {
            self.datapaths[near].remotes().set(pool, &remote).expect("set");
        }
    }

    /// Has a node forget the way to the other's pods.
    pub fn forget(&self, near: usize) {
        for pool in pools(1 - near) {
            self.datapaths[near].remotes().remove(pool).expect("remove");
        }
    }

    /// Has both forget what they know of flows.
    pub fn forget_flows(&self) {
        for datapath in &self.datapaths {
            datapath.flows().clear().expect("clear");
        }
    }

    fn make_underlay(&self) {
        let second = self.netns.path().to_str().expect("path");
        ip(&format!(
            "link add {UNDERLAY} mtu {UNDERLAY_MTU} type veth peer name {UNDERLAY} \
             mtu {UNDERLAY_MTU} netns {second}"
        ));
        for number in [0, 1] {
            self.enter(number, || {
                for ipv4 in [true, false] {
                    let address = underlay_address(number, ipv4);
                    let (prefix, more) = if ipv4 { (24, "") } else { (64, "nodad") };
                    ip(&format!("addr add {address}/{prefix} dev {UNDERLAY} {more}"));
                }
                ip(&format!("link set {UNDERLAY} up"));
            });
        }
    }

    /// The kernel's way from a node to the other one's pods.
    fn make_way(&self, near: usize) {
        let far = 1 - near;
        if self.way == Way::Plain {
            for pool in pools(far) {
                let gateway = underlay_address(far, pool.is_ipv4());
                ip(&format!("route add {pool} via {gateway} dev {UNDERLAY}"));
            }
            return;
        }
        let mac = text(overlay_mac(near));
        let is_ipv4 = self.way != Way::VxlanV6;
        let family = match is_ipv4 {
            true => "noudpcsum".to_owned(),
            false => format!("local {}", underlay_address(near, false)),
        };
        ip(&format!(
            "link add {OVERLAY} mtu {} address {mac} \
             type vxlan id {VNI} nolearning dstport {VXLAN_PORT} {family}",
            self.way.mtu(),
        ));
        ip(&format!("link set {OVERLAY} up"));
        let far_mac = text(overlay_mac(far));
        let node = underlay_address(far, is_ipv4).to_string();
        node::run(&["bridge", "fdb", "add", &far_mac, "dev", OVERLAY, "dst", &node]);
        for pool in pools(far) {
            let gateway = if pool.is_ipv4() {
                underlay_address(far, true)
            } else {
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, far as u16 + 1).into()
            };
            ip(&format!("neigh add {gateway} lladdr {far_mac} dev {OVERLAY} nud permanent"));
            ip(&format!("route add {pool} via {gateway} dev {OVERLAY} onlink"));
        }
    }
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours").field("way", &self.way).finish_non_exhaustive()
    }
}

/// The pools of a node, IPv4 first.
#[must_use]
pub fn pools(number: usize) -> [IpNetwork; 2] {
    let pool = |text: String| text.parse().expect("pool");
    [pool(format!("10.244.{number}.0/24")), pool(format!("fd00:10:244:{number}::/112"))]
}

/// A node's address on the underlay.
#[must_use]
pub fn underlay_address(number: usize, ipv4: bool) -> IpAddr {
    let last = number as u8 + 1;
    if ipv4 {
        Ipv4Addr::new(172, 30, 0, last).into()
    } else {
        Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, last.into()).into()
    }
}

fn overlay_mac(number: usize) -> [u8; 6] {
    [2, 0, 0x5e, 0, 0, number as u8 + 1]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `ip` in the calling thread's namespace.
fn ip(line: &str) {
    let command: Vec<&str> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
    node::run(&command);
}
