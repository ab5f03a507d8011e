//! What can become of a packet, as the index into the `stats` map.

/// One row of `stats`. The number is the index into the map and part of the ABI.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// `from_pod`: delivered straight into another local pod over IPv4.
    DirectV4 = 0,
    /// `from_pod`: delivered straight into another local pod over IPv6.
    DirectV6 = 1,
    /// `from_pod`: ARP request answered in place.
    ArpAnswered = 2,
    /// `from_pod`: neighbour solicitation answered in place.
    NdpAnswered = 3,
    /// `from_pod`, to the stack: the destination is no other pod on this node.
    StackNotLocal = 4,
    /// `from_pod`, to the stack: the flow is the stack's, or nothing is known of it, or one of the
    /// two pods is shaped.
    StackFlow = 5,
    /// `from_pod`, to the stack: fragment, IP options, extension header, VLAN tag, another MAC than
    /// the host veth's, or a protocol or EtherType that has no flow verdict.
    StackUnsupported = 6,
    /// `from_pod`, to the stack: TTL or hop limit used up, or larger than the receiver's MTU; the
    /// stack sends the ICMP error.
    StackIcmpError = 7,
    /// `from_pod`, to the stack: ARP reply, router solicitation, duplicate address detection, MLD
    /// and other traffic that stays on the link.
    StackControl = 8,
    /// `from_pod`, to the stack: broadcast or multicast.
    StackMulticast = 9,
    /// `to_pod`: passed to the pod.
    ToPod = 10,
    /// `from_pod`, dropped: the sender is not this interface's pod, or cannot be told for a VLAN tag
    /// behind a VLAN tag.
    DropSpoofedSource = 11,
    /// `from_pod`, dropped: ARP request that must not be answered (probe, gratuitous, not for the
    /// gateway).
    DropArpIgnored = 12,
    /// `from_pod`, dropped: shorter than its own headers say, or lengths that contradict each
    /// other.
    DropMalformed = 13,
    /// `from_pod`, dropped: a router advertisement or an IPv6 redirect, which would reconfigure the
    /// host, or a link-local packet whose extension headers may hide one.
    DropRouterMessage = 14,
    /// `from_pod`: sent straight to the node that has the receiver, IPv4.
    ToNodeV4 = 15,
    /// `from_pod`: sent straight to the node that has the receiver, IPv6.
    ToNodeV6 = 16,
    /// `from_overlay` and `from_uplink`: delivered straight into a local pod, IPv4.
    FromNodeV4 = 17,
    /// `from_overlay` and `from_uplink`: delivered straight into a local pod, IPv6.
    FromNodeV6 = 18,
    /// `from_pod`, dropped: a packet for the overlay's port, or one that may hide such a packet
    /// behind extension headers. Only nodes send there.
    DropEncapsulated = 19,
}

impl Counter {
    /// Every counter, in the order of its index.
    pub const ALL: [Self; 20] = [
        Self::DirectV4,
        Self::DirectV6,
        Self::ArpAnswered,
        Self::NdpAnswered,
        Self::StackNotLocal,
        Self::StackFlow,
        Self::StackUnsupported,
        Self::StackIcmpError,
        Self::StackControl,
        Self::StackMulticast,
        Self::ToPod,
        Self::DropSpoofedSource,
        Self::DropArpIgnored,
        Self::DropMalformed,
        Self::DropRouterMessage,
        Self::ToNodeV4,
        Self::ToNodeV6,
        Self::FromNodeV4,
        Self::FromNodeV6,
        Self::DropEncapsulated,
    ];

    /// Number of rows of `stats`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Stable name in snake case, for tables and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DirectV4 => "direct_v4",
            Self::DirectV6 => "direct_v6",
            Self::ArpAnswered => "arp_answered",
            Self::NdpAnswered => "ndp_answered",
            Self::StackNotLocal => "stack_not_local",
            Self::StackFlow => "stack_flow",
            Self::StackUnsupported => "stack_unsupported",
            Self::StackIcmpError => "stack_icmp_error",
            Self::StackControl => "stack_control",
            Self::StackMulticast => "stack_multicast",
            Self::ToPod => "to_pod",
            Self::DropSpoofedSource => "drop_spoofed_source",
            Self::DropArpIgnored => "drop_arp_ignored",
            Self::DropMalformed => "drop_malformed",
            Self::DropRouterMessage => "drop_router_message",
            Self::ToNodeV4 => "to_node_v4",
            Self::ToNodeV6 => "to_node_v6",
            Self::FromNodeV4 => "from_node_v4",
            Self::FromNodeV6 => "from_node_v6",
            Self::DropEncapsulated => "drop_encapsulated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_number_is_its_place() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index, "{counter:?}");
        }
    }

    #[test]
    fn no_two_counters_share_a_name() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            let others = &Counter::ALL[index + 1..];
            assert!(others.iter().all(|other| other.name() != counter.name()), "{counter:?}");
        }
    }
}
