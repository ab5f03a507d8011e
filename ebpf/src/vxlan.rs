//! VXLAN over IPv4 (RFC 7348) without the kernel's device: what a pod sends to another node gets its
//! outer headers here, and goes on by the host's routes.
//!
//! Invariant: on the wire it is what the device would have sent (`vxlan_xmit_one`, `iptunnel_xmit`): no
//! checksum over UDP, not "don't fragment", the congestion bits of the packet inside. So the other node need not know who wrote
//! them. Sysctls may tell the device another range of source ports and another TTL, a route another TTL, it
//! counts identifications up, and on Linux 7.2, unlike 6.18, it takes the last port of the range too.
//!
//! What comes in is left to the device, which takes marks off the packet that no program can
//! (`iptunnel_pull_offloads`): with them, what a pod forwards could not be cut into segments.

use bytemuck::{Pod, Zeroable};
use margay_abi::{Overlay, Remote, mapped_ipv4};

use crate::{
    checksum,
    ethernet::{self, Ethernet},
    ip::{Header, Ipv4, protocol},
    packet::Packet,
    verdict::{DropReason, Family, Verdict},
};

/// What stands between the Ethernet header on the wire and the packet inside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct Headers {
    ip: Ipv4,
    src_port: [u8; 2],
    dst_port: [u8; 2],
    /// Of UDP, header included.
    len: [u8; 2],
    /// None, which IPv4 allows.
    checksum: [u8; 2],
    flags: [u8; 4],
    /// The network identifier, and a byte of zero.
    vni: [u8; 4],
    ethernet: Ethernet,
}

/// Bytes that are added.
const ROOM: usize = size_of::<Headers>();
/// Where the IP header of the packet inside begins.
const INSIDE: usize = ethernet::HEADER_LEN + ROOM;

/// There is a network identifier.
const FLAGS: [u8; 4] = [8, 0, 0, 0];
/// What Linux sends with (`ip_default_ttl`).
const TTL: u8 = 64;
/// Source ports that Linux takes (`ip_local_port_range`).
const FIRST_PORT: u32 = 32_768;
const LAST_PORT: u32 = 60_999;

/// Sends a packet to a pod of the node of `remote`, if its flow is direct and it becomes `longest` bytes
/// on a link at most, from its IP header on. `Elsewhere` if that is for the device to do: the packet is
/// as it was.
#[inline(always)]
pub(crate) fn send<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    remote: &Remote,
    overlay: &Overlay,
    longest: u32,
) -> Result<Verdict, DropReason> {
    const LEFT: Result<Verdict, DropReason> = Ok(Verdict::Elsewhere { flags: 0 });
    // Over IPv6 there is a checksum over all of it, which is for the device.
    let Some(node) = mapped_ipv4(&remote.node) else { return LEFT };
    let len = packet.len() + (ROOM - ethernet::HEADER_LEN) as u32;
    let Ok(len) = u16::try_from(len) else { return LEFT };
    let src_port = source_port(packet.computed_hash());
    let ports = [src_port, overlay.port];
    let Some(way) = packet.way_from_here(&node, ports, longest + ROOM as u32) else { return LEFT };
    if packet.make_room_for_vxlan(ROOM).is_none() {
        return LEFT;
    }
    let headers = Headers {
        ip: outer_header(way.src, node, len, outer_congestion(ip.congestion()), packet.random()),
        src_port,
        dst_port: overlay.port,
        len: (len - size_of::<Ipv4>() as u16).to_be_bytes(),
        checksum: [0; 2],
        flags: FLAGS,
        vni: (overlay.vni << 8).to_be_bytes(),
        ethernet: Ethernet {
            dst: remote.mac,
            src: overlay.mac,
            ethertype: match H::FAMILY {
                Family::Ipv4 => ethernet::ethertype::IPV4,
                Family::Ipv6 => ethernet::ethertype::IPV6,
            },
        },
    };
    packet.write(ethernet::HEADER_LEN, headers).ok_or(DropReason::Malformed)?;
    ip.decrement_hop_limit(packet, INSIDE).ok_or(DropReason::Malformed)?;
    packet.mark_as_sent();
    packet.redirect_by(&way.hop);
    Ok(Verdict::Send(H::FAMILY))
}

#[inline(always)]
fn outer_header(src: [u8; 4], dst: [u8; 4], len: u16, tos: u8, identification: u16) -> Ipv4 {
    let header = Ipv4 {
        version_and_ihl: 0x45,
        tos,
        total_len: len.to_be_bytes(),
        identification: identification.to_be_bytes(),
        fragment: [0; 2],
        ttl: TTL,
        protocol: protocol::UDP,
        checksum: [0; 2],
        src,
        dst,
    };
    Ipv4 { checksum: checksum::checksum([bytemuck::bytes_of(&header)]), ..header }
}

/// The congestion bits outside (`INET_ECN_encapsulate`): those inside, but that what has met congestion
/// may meet it again.
#[inline(always)]
const fn outer_congestion(inside: u8) -> u8 {
    const MET: u8 = 3;
    const CAPABLE: u8 = 2;
    if inside == MET { CAPABLE } else { inside }
}

/// The port that stands for the packet's flow (`udp_flow_src_port`), so that what is between the nodes
/// spreads flows and keeps each in order.
#[inline(always)]
const fn source_port(hash: u32) -> [u8; 2] {
    // What spreads by the same hash would otherwise see in its upper half the port over again.
    let hash = hash ^ (hash << 16);
    let offset = (hash as u64 * (LAST_PORT - FIRST_PORT) as u64) >> 32;
    (FIRST_PORT as u16 + offset as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_bytes_of_the_wire() {
        assert_eq!(ROOM, 50);
        let ip = outer_header([10, 0, 0, 1], [10, 0, 0, 2], 100, 2, 0x1234);

        assert_eq!(checksum::checksum([bytemuck::bytes_of(&ip)]), [0; 2]);
        assert_eq!(bytemuck::bytes_of(&ip)[..10], [0x45, 2, 0, 100, 0x12, 0x34, 0, 0, 64, 17]);
        assert_eq!(bytemuck::bytes_of(&ip)[12..], [10, 0, 0, 1, 10, 0, 0, 2]);
    }

    #[test]
    fn congestion_met_inside_is_not_told_outside() {
        assert_eq!([0, 1, 2, 3].map(outer_congestion), [0, 1, 2, 2]);
    }

    #[test]
    fn source_ports_are_of_the_kernels_range_whatever_the_hash() {
        for hash in [0, 1, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
            let port = u32::from(u16::from_be_bytes(source_port(hash)));
            assert!((FIRST_PORT..LAST_PORT).contains(&port), "{hash}: {port}");
        }
        assert_ne!(source_port(1 << 20), source_port(2 << 20));
    }
}
