//! The Ethernet header.

use bytemuck::{Pod, Zeroable};

/// Bytes of an Ethernet header without a VLAN tag, which is the only kind the programs read past.
pub(crate) const HEADER_LEN: usize = size_of::<Ethernet>();

/// EtherTypes that the programs read.
pub(crate) mod ethertype {
    pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
    pub(crate) const ARP: [u8; 2] = [0x08, 0x06];
    pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];
    pub(crate) const VLAN: [u8; 2] = [0x81, 0x00];
    pub(crate) const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Ethernet {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
    pub(crate) ethertype: [u8; 2],
}

impl Ethernet {
    /// Multicast or broadcast: the group bit of the destination.
    #[inline(always)]
    pub(crate) fn is_group(&self) -> bool {
        self.dst[0] & 1 != 0
    }
}
