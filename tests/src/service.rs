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

    /// Begins to count what the host forwards.
    pub fn count_forwarded_packets(&self) {
        for line in [
            // So that there is one to delete.
            "add table inet forwarded",
            "delete table inet forwarded",
            "add table inet forwarded",
            "add counter inet forwarded seen",
            "add chain inet forwarded forward { type filter hook forward priority filter ; }",
            "add rule inet forwarded forward ct state new,established,invalid counter name seen",
        ] {
            self.run(&["nft", line]);
        }
    }

    /// Packets that the host has forwarded since [`count_forwarded_packets`](Self::count_forwarded_packets).
    #[must_use]
    pub fn forwarded_packets(&self) -> u64 {
        self.counted_packets("forwarded", "seen")
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
        self.counted_packets("sanity", "invalid")
    }

    fn counted_packets(&self, table: &str, counter: &str) -> u64 {
        let listing = self.run(&["nft", "--json", "list", "counter", "inet", table, counter]);
        let listing: Value = serde_json::from_str(&listing).expect("JSON");
        let objects = listing["nftables"].as_array().expect("objects").iter();
        objects.filter_map(|object| object["counter"]["packets"].as_u64()).next().expect("counter")
    }
}
