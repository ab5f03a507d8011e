//! The least that makes a Service in the host's stack: an address, which is destination NAT, and a
//! rule against packets that its conntrack makes no sense of. All of kube-proxy's rules are in
//! [`kube_proxy`](crate::kube_proxy).

use std::net::SocketAddr;

use serde_json::Value;

use crate::node::Node;

/// Transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// What iptables and nftables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Node {
    /// Leads what pods send to `service` to `backend`. A back end that is the client itself sees
    /// the node's address as the client, as kube-proxy's hairpin masquerade has it.
    pub fn expose(&self, protocol: Protocol, service: SocketAddr, backend: SocketAddr) {
        let family = if service.is_ipv4() { "ip" } else { "ip6" };
        let protocol = protocol.name();
        let nft = |line: String| {
            self.run(&["nft", &line]);
        };
        nft(format!("add table {family} services"));
        nft(format!(
            "add chain {family} services prerouting {{ type nat hook prerouting priority dstnat ; }}"
        ));
        nft(format!(
            "add chain {family} services postrouting {{ type nat hook postrouting priority srcnat ; }}"
        ));
        nft(format!(
            "add rule {family} services prerouting {family} daddr {} {protocol} dport {} dnat to {backend}",
            service.ip(),
            service.port(),
        ));
        nft(format!(
            "add rule {family} services postrouting {family} saddr {0} {family} daddr {0} masquerade",
            backend.ip(),
        ));
    }
    /// Keeps the host from forwarding what its conntrack calls invalid.
    pub fn drop_invalid(&self) {
        for line in [
            "add table inet sanity",
            "add counter inet sanity invalid",
            "add chain inet sanity forward { type filter hook forward priority filter ; }",
            "add rule inet sanity forward ct state invalid counter name invalid drop",
        ] {
            self.run(&["nft", line]);
        }
    }

    /// Packets that the rule of [`drop_invalid`](Self::drop_invalid) has dropped.
    ///
    /// # Panics
    /// When there is no such rule.
    #[must_use]
    pub fn invalid_packets(&self) -> u64 {
        let listing = self.run(&["nft", "--json", "list", "counter", "inet", "sanity", "invalid"]);
        let listing: Value = serde_json::from_str(&listing).expect("JSON");
        let objects = listing["nftables"].as_array().expect("objects").iter();
        objects.filter_map(|object| object["counter"]["packets"].as_u64()).next().expect("counter")
    }
}
