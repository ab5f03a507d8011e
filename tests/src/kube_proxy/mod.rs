//! What kube-proxy writes into a node's netfilter for its Services, in the shapes of its two modes:
//! the same chains in the same order, so that a packet passes what it passes on a real node.

mod iptables;
mod nftables;

use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::node::{NODE_V4, NODE_V6, Node};
use crate::service::Protocol;

/// Source addresses of pods, which kube-proxy knows as the cluster's.
const CLUSTER_V4: &str = "10.244.0.0/16";
const CLUSTER_V6: &str = "fd00:10:244::/64";
/// How long a client stays at a back end.
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service port.
#[derive(Clone, Debug)]
pub struct Service {
    /// Tells it from the others.
    pub number: usize,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Its address and port inside of the cluster.
    pub cluster: SocketAddr,
    /// Its port on every address of the node, if it has one.
    pub node_port: Option<u16>,
    /// Whether a client stays at the back end that it got first.
    pub has_affinity: bool,
    /// Where it leads, one at random.
    pub backends: Vec<SocketAddr>,
}

impl Service {
    /// What kube-proxy calls it.
    fn name(&self) -> String {
        format!("shop/svc{}", self.number)
    }
}

/// How kube-proxy talks to netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By `iptables-restore` and `ip6tables-restore`.
    Iptables,
    /// By `nft -f`.
    Nftables,
}

/// The kube-proxy of one address family on a node.
#[derive(Debug)]
pub struct KubeProxy<'node> {
    node: &'node Node,
    mode: Mode,
    ipv4: bool,
}

impl<'node> KubeProxy<'node> {
    /// Writes the rules for `services`, all of one family, at once.
    ///
    /// # Panics
    /// When they are refused.
    pub fn start(node: &'node Node, mode: Mode, ipv4: bool, services: &[Service]) -> Self {
        let proxy = Self { node, mode, ipv4 };
        let rules = match mode {
            Mode::Iptables => iptables::rules(proxy.family(), services),
            Mode::Nftables => nftables::rules(proxy.family(), services),
        };
        let file = node.path("state/kube-proxy");
        fs::write(&file, rules).expect("write the rules");
        let file = file.to_str().expect("path");
        match (mode, ipv4) {
            (Mode::Iptables, true) => node.run(&["iptables-restore", file]),
            (Mode::Iptables, false) => node.run(&["ip6tables-restore", file]),
            (Mode::Nftables, _) => node.run(&["nft", "-f", file]),
        };
        proxy
    }

    /// Packets that were dropped since conntrack made no sense of them.
    #[must_use]
    pub fn invalid_packets(&self) -> u64 {
        match self.mode {
            Mode::Iptables => iptables::invalid_packets(self.node, self.ipv4),
            Mode::Nftables => nftables::invalid_packets(self.node, self.family().name),
        }
    }

    fn family(&self) -> Family {
        if self.ipv4 {
            Family { name: "ip", pods: CLUSTER_V4, node: NODE_V4, host_bits: 32 }
        } else {
            Family { name: "ip6", pods: CLUSTER_V6, node: NODE_V6, host_bits: 128 }
        }
    }
}

/// What differs between the two families.
#[derive(Clone, Copy)]
struct Family {
    /// The word for it in nftables.
    name: &'static str,
    pods: &'static str,
    node: &'static str,
    host_bits: u8,
}

impl Family {
    fn prefix(self, address: IpAddr) -> String {
        format!("{address}/{}", self.host_bits)
    }
}
