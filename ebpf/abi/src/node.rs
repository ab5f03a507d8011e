//! What the fast path between nodes goes by. Written by the node agent alone; where there is none, the
//! maps are empty or zero, and the programs leave other nodes to the host's stack.

use bytemuck::{Pod, Zeroable};

/// Value of `remote_v4` and `remote_v6`: which way the pods of a prefix are reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Remote {
    /// Underlay address of the node that has the pods, IPv4 as `::ffff:a.b.c.d`: where VXLAN is sent,
    /// and the only outer source from which what comes of them in VXLAN is delivered without the stack;
    /// it may, though the way to them is plain.
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

/// Value of `overlay`: this node's VXLAN device. All zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Overlay {
    /// Interface index of the device, which takes the tunnel from each packet (`external`).
    pub ifindex: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, network byte order. While there is a device, pods may not send to this port.
    pub port: [u8; 2],
    /// MAC address of the device.
    pub mac: [u8; 6],
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
    assert!(size_of::<Overlay>() == 16);
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
        let overlay = Overlay { ifindex: 1, vni: 2, port: [3, 4], mac: [5; 6] };

        assert_eq!(bytes_of(&overlay)[..4], 1u32.to_ne_bytes());
        assert_eq!(bytes_of(&overlay)[4..8], 2u32.to_ne_bytes());
        assert_eq!(bytes_of(&overlay)[8..], [3, 4, 5, 5, 5, 5, 5, 5]);
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
