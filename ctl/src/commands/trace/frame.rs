//! What a frame says, as far as a person wants to know of it, and the flow that it is of.
//!
//! The programs decide by their own reading. This one only finds what to look up and what to show.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use margay_abi::{FlowKeyV4, FlowKeyV6};
use margay_datapath::{Flows, MapError};

use super::packet::{ETHERNET, Mac};

/// A frame, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Destination and source.
    pub(super) macs: [Mac; 2],
    pub(super) ethertype: u16,
    /// Sender and target of ARP.
    pub(super) arp: Option<[IpAddr; 2]>,
    pub(super) ip: Option<Ip>,
}

/// An IP header, and the beginning of what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    pub(super) ports: Option<[u16; 2]>,
    pub(super) tcp_flags: Option<u8>,
    /// Of an ICMP error, that of the packet that it quotes.
    pub(super) flow: Option<Flow>,
}

/// A five-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
    pub(super) protocol: u8,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl Frame {
    /// `None` of what is shorter than an Ethernet header.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (ethernet, rest) = bytes.split_at_checked(ETHERNET)?;
        let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
        let macs = [part(ethernet, 0)?, part(ethernet, 6)?];
        let arp = || Some([part::<4>(rest, 14)?, part::<4>(rest, 24)?].map(IpAddr::from));
        Some(Self {
            macs,
            ethertype,
            arp: if ethertype == 0x0806 { arp() } else { None },
            ip: match ethertype {
                0x0800 => ipv4(rest, true),
                0x86dd => ipv6(rest, true),
                _ => None,
            },
        })
    }

    /// Source and destination, of whatever protocol.
    pub(super) fn addresses(&self) -> Option<[IpAddr; 2]> {
        self.arp.or_else(|| self.ip.as_ref().map(|ip| [ip.source, ip.destination]))
    }
}

/// Headers of VXLAN over IPv4 that a hook has put in front of a frame of `length` bytes: their addresses,
/// if there are any, and the frame behind them. The Ethernet header is for the kernel to fill in: its type
/// may still be that of the packet inside.
pub(super) fn unwrapped(sent: &[u8], length: usize) -> (Option<[IpAddr; 2]>, &[u8]) {
    let added = sent.len().saturating_sub(length);
    if added == 0 {
        return (None, sent);
    }
    let outer = sent.get(ETHERNET..).and_then(|rest| ipv4(rest, false));
    (outer.map(|ip| [ip.source, ip.destination]), &sent[added..])
}

impl Ip {
    /// Whether it is for a group.
    pub(super) fn is_to_group(&self) -> bool {
        match self.destination {
            IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_multicast(),
        }
    }
}

/// What a router makes of a frame: with the MAC addresses of the next link, destination first, and
/// a hop less to go.
pub(super) fn forwarded(bytes: &[u8], macs: [Mac; 2], hops: u8) -> Vec<u8> {
    const TTL: usize = ETHERNET + 8;
    const HOP_LIMIT: usize = ETHERNET + 7;
    let mut frame = bytes.to_vec();
    frame[..12].copy_from_slice(macs.as_flattened());
    match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() >= ETHERNET + 20 => {
            frame[TTL] -= hops;
            // One's complement: what one byte of a word loses, the checksum gains (RFC 1624).
            let sum = u32::from(u16::from_be_bytes([frame[ETHERNET + 10], frame[ETHERNET + 11]]));
            let sum = sum + (u32::from(hops) << 8);
            let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        }
        Some([0x86, 0xdd]) if frame.len() >= ETHERNET + 40 => frame[HOP_LIMIT] -= hops,
        _ => {}
    }
    frame
}

fn ipv4(bytes: &[u8], quotes: bool) -> Option<Ip> {
    let (header, _) = bytes.split_at_checked(20)?;
    let offset = usize::from(header[0] & 0xf) * 4;
    let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let payload = if is_first { bytes.get(offset..) } else { None };
    let addresses = [part::<4>(header, 12)?, part::<4>(header, 16)?].map(IpAddr::from);
    Some(ip(addresses, header[9], header[8], payload, quotes))
}

fn ipv6(bytes: &[u8], quotes: bool) -> Option<Ip> {
    let (header, payload) = bytes.split_at_checked(40)?;
    let addresses = [part::<16>(header, 8)?, part::<16>(header, 24)?].map(IpAddr::from);
    let (mut protocol, mut payload) = (header[6], Some(payload));
    while let (0 | 43 | 44 | 60, Some([next, units, rest @ ..])) = (protocol, payload) {
        let len = if protocol == 44 { 8 } else { usize::from(*units) * 8 + 8 };
        let is_first = protocol != 44 || rest.first_chunk().is_some_and(|&[a, b]| a == 0 && b < 8);
        payload = if is_first { rest.get(len - 2..) } else { None };
        protocol = *next;
    }
    Some(ip(addresses, protocol, header[7], payload, quotes))
}

fn ip(
    [source, destination]: [IpAddr; 2],
    protocol: u8,
    hop_limit: u8,
    payload: Option<&[u8]>,
    quotes: bool,
) -> Ip {
    let start: Option<&[u8; 8]> = payload.and_then(<[u8]>::first_chunk);
    let port = |at: usize| start.map(|start| u16::from_be_bytes([start[at], start[at + 1]]));
    let (is_echo, is_error) = match (protocol, start) {
        (ICMP, Some([kind, ..])) => (matches!(kind, 0 | 8), matches!(kind, 3 | 4 | 5 | 11 | 12)),
        (ICMPV6, Some([kind, ..])) => (matches!(kind, 128 | 129), *kind < 128),
        _ => (false, false),
    };
    let ports = match protocol {
        TCP | UDP | SCTP => port(0).zip(port(2)).map(|(source, destination)| [source, destination]),
        _ if is_echo => port(4).map(|identifier| [identifier; 2]),
        _ => None,
    };
    let own = ports.map(|[source_port, destination_port]| Flow {
        source: (source, source_port),
        destination: (destination, destination_port),
        protocol,
    });
    let quoted = || {
        let quoted = payload?.get(8..)?;
        if protocol == ICMP { ipv4(quoted, false)?.flow } else { ipv6(quoted, false)?.flow }
    };
    Ip {
        source,
        destination,
        protocol,
        hop_limit,
        ports,
        tcp_flags: (protocol == TCP).then(|| payload?.get(13).copied()).flatten(),
        flow: if is_error && quotes { quoted() } else { own },
    }
}

impl Flow {
    /// The verdict on it.
    pub(super) fn verdict(&self, flows: &Flows) -> Result<Option<u8>, MapError> {
        let flow = match self.keys() {
            Some(Keys::V4(key)) => flows.get_v4(&key)?,
            Some(Keys::V6(key)) => flows.get_v6(&key)?,
            None => None,
        };
        Ok(flow.map(|flow| flow.verdict))
    }

    /// Whether it has a beginning that can be told, or conntrack alone knows it.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self.protocol, TCP | SCTP)
    }

    /// Gives it a verdict.
    pub(super) fn set(&self, flows: &Flows, verdict: u8) -> Result<(), MapError> {
        match self.keys() {
            Some(Keys::V4(key)) => flows.set_v4(&key, verdict),
            Some(Keys::V6(key)) => flows.set_v6(&key, verdict),
            None => Ok(()),
        }
    }

    fn keys(&self) -> Option<Keys> {
        let (source_port, destination_port) =
            (self.source.1.to_be_bytes(), self.destination.1.to_be_bytes());
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Keys::V4(FlowKeyV4 {
                src: Ipv4Addr::octets(&source),
                dst: destination.octets(),
                src_port: source_port,
                dst_port: destination_port,
                protocol: self.protocol,
                reserved: [0; 3],
            })),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Keys::V6(FlowKeyV6 {
                src: Ipv6Addr::octets(&source),
                dst: destination.octets(),
                src_port: source_port,
                dst_port: destination_port,
                protocol: self.protocol,
                reserved: [0; 3],
            })),
            _ => None,
        }
    }
}

enum Keys {
    V4(FlowKeyV4),
    V6(FlowKeyV6),
}

fn part<const BYTES: usize>(bytes: &[u8], from: usize) -> Option<[u8; BYTES]> {
    bytes.get(from..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_of_the_flow_that_it_quotes() {
        let header = |protocol, src: u8, dst: u8| {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend([10, 0, 0, src, 10, 0, 0, dst]);
            header
        };
        let quoted = [header(UDP, 2, 1), vec![0, 7, 0, 9, 0, 8, 0, 0]].concat();
        let error = [header(ICMP, 1, 2), vec![3, 3, 0, 0, 0, 0, 0, 0], quoted].concat();
        let frame = [&[2; 12][..], &[8, 0], &error].concat();

        let flow = Frame::read(&frame).unwrap().ip.unwrap().flow.unwrap();

        assert_eq!((flow.protocol, flow.source.1, flow.destination.1), (UDP, 7, 9));
        assert_eq!(flow.source.0, IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn no_beginning_of_a_frame_is_too_much() {
        let tail = [44, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 0, 0, 0, 0].repeat(4);
        let ipv6 = [&[0x60, 0, 0, 0, 0, 64, 60, 64][..], &[1; 32], &tail].concat();
        let frame = [&[2; 12][..], &[0x86, 0xdd], &ipv6].concat();
        for end in 0..=frame.len() {
            let read = Frame::read(&frame[..end]);
            assert_eq!(read.is_some(), end >= ETHERNET);
        }
    }
}
