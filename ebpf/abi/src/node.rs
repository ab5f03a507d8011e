//! What the fast path between nodes goes by. Written by the node agent alone; where there is none, the
//! maps are empty or zero, and the programs leave other nodes to the host's stack.

use bytemuck::{Pod, Zeroable};

/// Value of `remote_v4` and `remote_v6`: which way the pods of a prefix are reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Remote {
    /// Underlay address of the node that has the pods, IPv4 as `::ffff:a.b.c.d`: where VXLAN is sent.
    pub node: [u8; 16],
    /// The longest packet that fits, network layer, without what VXLAN adds.
    pub mtu: u32,
    /// MAC address of that node's VXLAN device; zero without VXLAN.
    pub mac: [u8; 6],
    /// One of [`remote_mode`].
    pub mode: u8,
    /// Zero.
    pub reserved: u8,
}

/// Values of [`Remote::mode`]. Of any other, the stack knows better.
pub mod remote_mode {
    /// In VXLAN, to [`Remote::node`](super::Remote::node).
    pub const VXLAN: u8 = 1;
    /// As it is, by the host's routes.
    pub const PLAIN: u8 = 2;
}

/// Value of `overlay`: this node's VXLAN devices. All zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Overlay {
    /// Interface index of the device whose outer headers are IPv4's; 0 if there is none. It goes by a
    /// table, from [`Remote::mac`] to the node.
    pub ifindex_v4: u32,
    /// The same of IPv6.
    pub ifindex_v6: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, network byte order. While it is not 0, pods may not send to this port.
    pub port: [u8; 2],
    /// MAC address of both.
    pub mac: [u8; 6],
}

impl Overlay {
    /// Interface index of the device that sends to a [`Remote::node`]; 0 if there is none.
    #[must_use]
    #[inline(always)]
    pub fn towards(&self, node: &[u8; 16]) -> u32 {
        if mapped_ipv4(node).is_some() { self.ifindex_v4 } else { self.ifindex_v6 }
    }
}

/// What `from_pod` leaves for `pod_to_node` beside a packet (`skb->cb`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PodToNode {
    /// The [`Counter`](crate::Counter) of the packet if it is the stack's after all.
    pub reason: u32,
    /// Bits of [`pod_flags`](crate::pod_flags) of the sender.
    pub sender_flags: u32,
}

const _: () = {
    assert!(size_of::<Remote>() == 28);
    assert!(size_of::<Overlay>() == 20);
};

/// What an IPv4 address looks like as an IPv6 address (RFC 4291, section 2.5.5.2).
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// The IPv4 address in a [`Remote::node`]; `None` if that is IPv6.
#[must_use]
#[inline(always)]
pub fn mapped_ipv4(node: &[u8; 16]) -> Option<[u8; 4]> {
    let (prefix, address) = node.split_last_chunk::<4>()?;
    (prefix == MAPPED).then_some(*address)
}

#[cfg(test)]
mod tests {
    use bytemuck::bytes_of;

    use super::*;

    #[test]
    fn remote_has_the_bytes_of_the_abi() {
        let remote = Remote { node: [1; 16], mtu: 2, mac: [3; 6], mode: 4, reserved: 0 };

        assert_eq!(bytes_of(&remote)[..16], [1; 16]);
        assert_eq!(bytes_of(&remote)[16..20], 2u32.to_ne_bytes());
        assert_eq!(bytes_of(&remote)[20..], [3, 3, 3, 3, 3, 3, 4, 0]);
    }

    #[test]
    fn overlay_has_the_bytes_of_the_abi() {
        let overlay = Overlay { ifindex_v4: 1, ifindex_v6: 2, vni: 3, port: [4, 5], mac: [6; 6] };

        assert_eq!(bytes_of(&overlay)[..4], 1u32.to_ne_bytes());
        assert_eq!(bytes_of(&overlay)[4..8], 2u32.to_ne_bytes());
        assert_eq!(bytes_of(&overlay)[8..12], 3u32.to_ne_bytes());
        assert_eq!(bytes_of(&overlay)[12..], [4, 5, 6, 6, 6, 6, 6, 6]);
    }

    #[test]
    fn only_a_mapped_address_is_ipv4() {
        let mut node = [0; 16];
        node[15] = 7;
        assert_eq!(mapped_ipv4(&node), None);

        node[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 7]);
        assert_eq!(mapped_ipv4(&node), Some([10, 0, 0, 7]));
    }
}
