//! A Service address: destination NAT in the host's stack, as kube-proxy sets it up.

use std::net::SocketAddr;

use crate::node::Node;

/// Transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Node {
    /// Leads what pods send to `service` to `backend`. A back end that is the client itself sees
    /// the node's address as the client, as kube-proxy's hairpin masquerade has it.
    pub fn expose(&self, protocol: Protocol, service: SocketAddr, backend: SocketAddr) {
        let family = if service.is_ipv4() { "ip" } else { "ip6" };
        let protocol = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
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
}
