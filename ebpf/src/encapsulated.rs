//! Packets for the overlay's port. VXLAN believes whoever sends there, so only nodes may: a pod that
//! could would have its packets unpacked, with whatever source addresses are inside, by its own node
//! or, behind masquerading, by any other.

use crate::{
    ip::{Ipv4, Ipv6, Payload, protocol},
    maps::Tables,
    packet::Packet,
    to_pod::behind_extensions,
};

/// Of a UDP header.
const DESTINATION_PORT: usize = 2;

/// Whether an IPv4 packet is for the port. Later fragments come to nothing without the first.
#[inline(always)]
pub(crate) fn is_ipv4(
    packet: &impl Packet,
    ip: &Ipv4,
    payload: Payload,
    tables: &impl Tables<Ipv4>,
) -> bool {
    payload.protocol == protocol::UDP
        && !ip.is_later_fragment()
        && tables.overlay().is_some_and(|overlay| is_for(packet, payload, overlay.port))
}

/// Whether an IPv6 packet is for the port, or has more extension headers than are looked behind.
#[inline(always)]
pub(crate) fn is_ipv6(packet: &impl Packet, payload: Payload, tables: &impl Tables<Ipv6>) -> bool {
    let Some(overlay) = tables.overlay() else { return false };
    if payload.protocol == protocol::UDP {
        return is_for(packet, payload, overlay.port);
    }
    protocol::is_extension(payload.protocol) && is_behind_extensions(packet, payload, overlay.port)
}

#[inline(always)]
fn is_behind_extensions(packet: &impl Packet, payload: Payload, port: [u8; 2]) -> bool {
    match behind_extensions(packet, payload) {
        Some(inner) if inner.protocol == protocol::UDP => is_for(packet, inner, port),
        Some(inner) => protocol::is_extension(inner.protocol),
        None => false,
    }
}

#[inline(always)]
fn is_for(packet: &impl Packet, payload: Payload, port: [u8; 2]) -> bool {
    packet.read::<[u8; 2]>(payload.offset + DESTINATION_PORT) == Some(port)
}
