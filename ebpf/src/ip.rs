//! The IPv4 and IPv6 headers, and what differs between the two families for a hook.
//!
//! A [`Header`] is only ever looked at after [`read`] has found its lengths to agree with the
//! packet's, so that nothing behind it is taken for a part of it.

use bytemuck::{Pod, Zeroable};
use margay_abi::{FlowKeyV4, FlowKeyV6};

use crate::{
    checksum, ethernet,
    packet::Packet,
    verdict::{DropReason, Family},
};

/// IP protocol numbers (the "next header" of IPv6).
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION: u8 = 60;
    pub(crate) const SCTP: u8 = 132;

    /// Whether it is an IPv6 header with another one behind it, of those that need no agreement.
    #[inline(always)]
    pub(crate) const fn is_extension(protocol: u8) -> bool {
        matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
    }
}

/// What an ICMP message means to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpKind {
    /// Echo request, the beginning of a flow of its own or a later packet of it.
    Request,
    /// Echo reply, which goes the other way in its request's flow.
    Reply,
    /// An error about the packet that it quotes.
    Error,
    /// Anything else.
    Other,
}

/// The bytes behind an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) protocol: u8,
    /// From the beginning of the frame.
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A flow by its canonical key, and which way along it a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directed<K> {
    pub(crate) key: K,
    pub(crate) is_reversed: bool,
}

/// The fixed part of an IP header.
pub(crate) trait Header: Pod {
    type Address: Pod + PartialEq;
    /// Key of this family's flow table.
    type Key: Pod;

    const FAMILY: Family;
    /// Number of this family's ICMP.
    const ICMP: u8;

    fn src(&self) -> Self::Address;
    fn dst(&self) -> Self::Address;
    fn hop_limit(&self) -> u8;
    fn protocol(&self) -> u8;
    /// Whether the destination is a multicast or broadcast address.
    fn is_to_group(&self) -> bool;
    /// Whether the payload begins right behind this fixed part and is there as a whole: neither
    /// options nor a fragment. An extension header is a [`protocol`](Self::protocol) that nobody
    /// knows.
    fn is_plain(&self) -> bool;
    /// The payload, if the header's lengths agree with each other and with the `room` bytes that
    /// the packet has from this header on. A length of 0 in a GSO packet means all of it: BIG TCP,
    /// longer than the field can say (`iph_totlen` of Linux 6.3).
    fn payload(&self, room: usize, is_gso: bool) -> Option<Payload>;

    fn icmp_kind(icmp_type: u8) -> IcmpKind;
    /// The flow of a packet with this header, and its direction.
    fn flow(&self, protocol: u8, src_port: [u8; 2], dst_port: [u8; 2]) -> Directed<Self::Key>;

    /// The two bits that tell of congestion (RFC 3168).
    fn congestion(&self) -> u8;
    /// Writes this header's hop limit less one into the packet, where the header begins at `offset`,
    /// checksums included.
    fn decrement_hop_limit(&self, packet: &mut impl Packet, offset: usize) -> Option<()>;
}

/// Reads the IP header behind the Ethernet header.
#[inline(always)]
pub(crate) fn read<H: Header>(packet: &impl Packet) -> Result<(H, Payload), DropReason> {
    let header: H = packet.read(ethernet::HEADER_LEN).ok_or(DropReason::Malformed)?;
    let room = packet.len() as usize - ethernet::HEADER_LEN;
    let payload = header.payload(room, packet.gso_size() != 0).ok_or(DropReason::Malformed)?;
    Ok((header, payload))
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Ipv4 {
    pub(crate) version_and_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) total_len: [u8; 2],
    pub(crate) identification: [u8; 2],
    pub(crate) fragment: [u8; 2],
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
}

impl Ipv4 {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;

    /// Whether the payload is the middle or the end of one that another packet begins.
    #[inline(always)]
    pub(crate) fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & Self::FRAGMENT_OFFSET != 0
    }
}

impl Header for Ipv4 {
    type Address = [u8; 4];
    type Key = FlowKeyV4;

    const FAMILY: Family = Family::Ipv4;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn src(&self) -> [u8; 4] {
        self.src
    }

    #[inline(always)]
    fn dst(&self) -> [u8; 4] {
        self.dst
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn is_to_group(&self) -> bool {
        self.dst[0] & 0xf0 == 0xe0 || self.dst == [255; 4]
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        let fragment = u16::from_be_bytes(self.fragment);
        self.version_and_ihl == 0x45
            && fragment & (Self::MORE_FRAGMENTS | Self::FRAGMENT_OFFSET) == 0
    }

    #[inline(always)]
    fn payload(&self, room: usize, is_gso: bool) -> Option<Payload> {
        let header_len = usize::from(self.version_and_ihl & 0x0f) * 4;
        let total_len = match u16::from_be_bytes(self.total_len) {
            0 if is_gso => room,
            len => usize::from(len),
        };
        let len = total_len.checked_sub(header_len)?;
        let agrees =
            self.version_and_ihl >> 4 == 4 && header_len >= size_of::<Self>() && total_len <= room;
        let offset = ethernet::HEADER_LEN + header_len;
        agrees.then_some(Payload { protocol: self.protocol, offset, len })
    }

    #[inline(always)]
    fn icmp_kind(icmp_type: u8) -> IcmpKind {
        match icmp_type {
            8 => IcmpKind::Request,
            0 => IcmpKind::Reply,
            3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
            _ => IcmpKind::Other,
        }
    }

    #[inline(always)]
    fn flow(&self, protocol: u8, src_port: [u8; 2], dst_port: [u8; 2]) -> Directed<FlowKeyV4> {
        let (src, dst) = (self.src, self.dst);
        let key = FlowKeyV4 { src, dst, src_port, dst_port, protocol, reserved: [0; 3] };
        let is_reversed = !key.is_canonical();
        Directed { key: if is_reversed { key.reversed() } else { key }, is_reversed }
    }

    #[inline(always)]
    fn congestion(&self) -> u8 {
        self.tos & 3
    }

    #[inline(always)]
    fn decrement_hop_limit(&self, packet: &mut impl Packet, offset: usize) -> Option<()> {
        const TTL: usize = 8;
        let [high, low] = checksum::after_ttl_decrement(self.checksum);
        // TTL, protocol and checksum are neighbours: one store.
        packet.write(offset + TTL, [self.ttl - 1, self.protocol, high, low])
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Ipv6 {
    pub(crate) version_and_flow: [u8; 4],
    pub(crate) payload_len: [u8; 2],
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
}

impl Header for Ipv6 {
    type Address = [u8; 16];
    type Key = FlowKeyV6;

    const FAMILY: Family = Family::Ipv6;
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn src(&self) -> [u8; 16] {
        self.src
    }

    #[inline(always)]
    fn dst(&self) -> [u8; 16] {
        self.dst
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.next_header
    }

    #[inline(always)]
    fn is_to_group(&self) -> bool {
        is_multicast(&self.dst)
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.version_and_flow[0] >> 4 == 6
    }

    #[inline(always)]
    fn payload(&self, room: usize, is_gso: bool) -> Option<Payload> {
        let room = room - size_of::<Self>();
        let len = match u16::from_be_bytes(self.payload_len) {
            0 if is_gso => room,
            len => usize::from(len),
        };
        let agrees = self.is_plain() && len <= room;
        agrees.then_some(Payload {
            protocol: self.next_header,
            offset: ethernet::HEADER_LEN + size_of::<Self>(),
            len,
        })
    }

    #[inline(always)]
    fn icmp_kind(icmp_type: u8) -> IcmpKind {
        match icmp_type {
            128 => IcmpKind::Request,
            129 => IcmpKind::Reply,
            1..=4 => IcmpKind::Error,
            _ => IcmpKind::Other,
        }
    }

    #[inline(always)]
    fn flow(&self, protocol: u8, src_port: [u8; 2], dst_port: [u8; 2]) -> Directed<FlowKeyV6> {
        let (src, dst) = (self.src, self.dst);
        let key = FlowKeyV6 { src, dst, src_port, dst_port, protocol, reserved: [0; 3] };
        let is_reversed = !key.is_canonical();
        Directed { key: if is_reversed { key.reversed() } else { key }, is_reversed }
    }

    #[inline(always)]
    fn congestion(&self) -> u8 {
        (self.version_and_flow[1] >> 4) & 3
    }

    #[inline(always)]
    fn decrement_hop_limit(&self, packet: &mut impl Packet, offset: usize) -> Option<()> {
        const HOP_LIMIT: usize = 7;
        packet.write(offset + HOP_LIMIT, self.hop_limit - 1)?;
        // IPv6 has no checksum of its own that would make up for the change, as IPv4 has.
        packet.adjust_checksum(checksum::MINUS_ONE);
        Some(())
    }
}

/// `ff00::/8`.
#[inline(always)]
pub(crate) fn is_multicast(address: &[u8; 16]) -> bool {
    address[0] == 0xff
}

/// `fe80::/10`.
#[inline(always)]
pub(crate) fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}
