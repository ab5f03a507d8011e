//! What is behind the IP header, as far as the flow table is concerned: the key of the flow that a
//! packet belongs to.
//!
//! Invariant: a key is made only from bytes that are inside of the IP payload.

use bytemuck::{Pod, Zeroable};

use crate::{
    ip::{Directed, Header, IcmpKind, Payload, protocol},
    packet::Packet,
    verdict::DropReason,
};

/// How a packet relates to the flows between two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport<K> {
    pub(crate) role: Role,
    /// The flow, in the direction that the packet goes. Of [`Role::Error`] that of the packet that it
    /// quotes; without meaning for [`Role::None`].
    pub(crate) flow: Directed<K>,
    /// Bytes of the transport header.
    pub(crate) header_len: usize,
}

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A packet that may be the first, and is surely no answer: a TCP SYN without ACK, an ICMP echo
    /// request.
    Beginning,
    /// A packet that may be the first, or an answer to one; and an ICMP echo reply.
    Any,
    /// A TCP FIN: surely not the first.
    End,
    /// Any other TCP packet, surely not the first; and SCTP, of which no packet begins a direct flow.
    Middle,
    /// An ICMP error about a packet that went the other way.
    Error,
    /// There is no flow.
    None,
}

/// TCP, without its options.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Tcp {
    src_port: [u8; 2],
    dst_port: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    data_offset: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

impl Tcp {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    /// Of the sixteen bits that hold the flags.
    const FLAGS: usize = 12;
    const CHECKSUM: usize = 16;
}

/// The first eight bytes of UDP, SCTP and ICMP, which is also what an ICMP error quotes at least.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Start {
    /// Source port, or type and code of ICMP.
    first: [u8; 2],
    /// Destination port, or checksum of ICMP.
    second: [u8; 2],
    /// Identifier of an ICMP echo.
    identifier: [u8; 2],
    fourth: [u8; 2],
}

const UDP_HEADER_LEN: usize = 8;
const SCTP_HEADER_LEN: usize = 12;
const ICMP_HEADER_LEN: usize = 8;

/// Reads the payload of `ip`, which begins with a transport header.
#[inline(always)]
pub(crate) fn read<H: Header>(
    packet: &impl Packet,
    ip: &H,
    payload: Payload,
) -> Result<Transport<H::Key>, DropReason> {
    let header_len = match payload.protocol {
        protocol::TCP => return read_tcp(packet, ip, payload),
        protocol::UDP => UDP_HEADER_LEN,
        protocol::SCTP => SCTP_HEADER_LEN,
        icmp if icmp == H::ICMP => ICMP_HEADER_LEN,
        _ => return Ok(Transport::none(ip)),
    };
    if payload.len < header_len {
        return Err(DropReason::Malformed);
    }
    let start: Start = packet.read(payload.offset).ok_or(DropReason::Malformed)?;
    if payload.protocol == H::ICMP && H::icmp_kind(start.first[0]) == IcmpKind::Error {
        return Ok(match quoted_flow(packet, ip, payload) {
            Some(flow) => Transport { role: Role::Error, flow, header_len },
            None => Transport::none(ip),
        });
    }
    let role = match payload.protocol {
        // Conntrack does not take an SCTP association up in its middle, save with a HEARTBEAT. Were one
        // direct, and its entry lost, a host that drops what is invalid would drop it until the next.
        protocol::SCTP => Role::Middle,
        icmp if icmp == H::ICMP && H::icmp_kind(start.first[0]) == IcmpKind::Request => {
            Role::Beginning
        }
        _ => Role::Any,
    };
    Ok(match ports::<H>(payload.protocol, &start) {
        Some((src_port, dst_port)) => {
            Transport { role, flow: ip.flow(payload.protocol, src_port, dst_port), header_len }
        }
        None => Transport::none(ip),
    })
}

impl<K> Transport<K> {
    #[inline(always)]
    fn none<H: Header<Key = K>>(ip: &H) -> Self {
        Self { role: Role::None, flow: ip.flow(0, [0; 2], [0; 2]), header_len: 0 }
    }
}

#[inline(always)]
fn read_tcp<H: Header>(
    packet: &impl Packet,
    ip: &H,
    payload: Payload,
) -> Result<Transport<H::Key>, DropReason> {
    let tcp: Tcp = packet.read(payload.offset).ok_or(DropReason::Malformed)?;
    let header_len = usize::from(tcp.data_offset >> 4) * 4;
    if header_len < size_of::<Tcp>() || header_len > payload.len {
        return Err(DropReason::Malformed);
    }
    let role = if tcp.flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN {
        Role::Beginning
    } else if tcp.flags & (Tcp::FIN | Tcp::RST) == Tcp::FIN {
        Role::End
    } else {
        Role::Middle
    };
    Ok(Transport { role, flow: ip.flow(protocol::TCP, tcp.src_port, tcp.dst_port), header_len })
}

/// Takes the FIN off a TCP packet whose header begins at `offset`, as if it had been lost on the way:
/// the sender repeats it.
#[inline(always)]
pub(crate) fn lose_fin(packet: &mut impl Packet, offset: usize) -> Option<()> {
    let before: [u8; 2] = packet.read(offset + Tcp::FLAGS)?;
    let after = [before[0], before[1] & !Tcp::FIN];
    packet.write(offset + Tcp::FLAGS, after)?;
    packet.adjust_transport_checksum(offset + Tcp::CHECKSUM, before, after);
    Some(())
}

/// The flow of the packet that an ICMP error quotes, in the direction of the quoted packet.
///
/// `None` if it cannot be told: the quoted packet has options, is a fragment, has no flow, is cut
/// off before its ports, or was not sent by the one whom the error goes to.
#[inline(always)]
fn quoted_flow<H: Header>(
    packet: &impl Packet,
    error: &H,
    payload: Payload,
) -> Option<Directed<H::Key>> {
    if payload.len < ICMP_HEADER_LEN + size_of::<H>() + size_of::<Start>() {
        return None;
    }
    let quoted: H = packet.read(payload.offset + ICMP_HEADER_LEN)?;
    let start: Start = packet.read(payload.offset + ICMP_HEADER_LEN + size_of::<H>())?;
    if !quoted.is_plain() || quoted.src() != error.dst() {
        return None;
    }
    let (src_port, dst_port) = ports::<H>(quoted.protocol(), &start)?;
    Some(quoted.flow(quoted.protocol(), src_port, dst_port))
}

/// What stands for a packet's own ports, source first; `None` if there are none or they are cut off.
#[inline(always)]
pub(crate) fn own_ports<H: Header>(
    packet: &impl Packet,
    payload: Payload,
) -> Option<([u8; 2], [u8; 2])> {
    if payload.len < size_of::<Start>() {
        return None;
    }
    ports::<H>(payload.protocol, &packet.read(payload.offset)?)
}

/// What stands for the ports in a flow's key, by the first bytes of its transport header.
#[inline(always)]
fn ports<H: Header>(protocol: u8, start: &Start) -> Option<([u8; 2], [u8; 2])> {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => Some((start.first, start.second)),
        icmp if icmp == H::ICMP => match H::icmp_kind(start.first[0]) {
            IcmpKind::Request | IcmpKind::Reply => Some((start.identifier, start.identifier)),
            IcmpKind::Error | IcmpKind::Other => None,
        },
        _ => None,
    }
}
