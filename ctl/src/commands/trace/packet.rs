//! The packet that is asked about, made byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use margay_abi::{GATEWAY_V4, GATEWAY_V6};

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// Such a packet cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PacketError {
    /// Source and destination are of two families.
    #[error("{source_address} and {destination} are not of one family")]
    Families {
        /// From where.
        source_address: IpAddr,
        /// Where to.
        destination: IpAddr,
    },
    /// One that has no address of the family.
    #[error("{name} has no {family} address")]
    NoAddress {
        /// Who.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A protocol of one family for the other.
    #[error("there is no {protocol} over {family}")]
    Protocol {
        /// The protocol's name.
        protocol: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// A message of another protocol.
    #[error("{protocol} has no message {message}")]
    Message {
        /// The protocol's name.
        protocol: String,
        /// The message's name.
        message: String,
    },
    /// Shorter than its headers.
    #[error("a packet of {length} bytes has no room for its {headers} bytes of headers")]
    Length {
        /// What was asked for.
        length: usize,
        /// What there must be.
        headers: usize,
    },
    /// The frame cannot be read.
    #[error("read the frame from {path}")]
    Frame {
        /// Which file.
        path: String,
        #[source]
        /// Errno.
        source: std::io::Error,
    },
    /// The frame is not one.
    #[error("{path} does not hold an Ethernet frame in hexadecimal digits")]
    NotAFrame {
        /// Which file.
        path: String,
    },
    /// The kernel handles VLAN tags before the programs see a packet.
    #[error("the frame has a VLAN tag, which the kernel takes off before the programs see it")]
    Tagged,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6, of the destination's family.
    Icmp,
    /// ARP, which is IPv4's.
    Arp,
    /// Neighbour discovery, which is IPv6's.
    Ndp,
    /// Another protocol of IP's, by its number.
    Other(u8),
}

impl Protocol {
    /// As on the command line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            "icmp" => Self::Icmp,
            "arp" => Self::Arp,
            "ndp" => Self::Ndp,
            number => Self::Other(number.parse().map_err(|_| {
                "must be tcp, udp, sctp, icmp, arp, ndp or the number of a protocol".to_owned()
            })?),
        })
    }

    /// Its name.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Tcp => "tcp".to_owned(),
            Self::Udp => "udp".to_owned(),
            Self::Sctp => "sctp".to_owned(),
            Self::Icmp => "icmp".to_owned(),
            Self::Arp => "arp".to_owned(),
            Self::Ndp => "ndp".to_owned(),
            Self::Other(number) => format!("protocol {number}"),
        }
    }
}

/// A message of ICMP, ARP or neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Message {
    /// Of ARP: who has the address
    Request,
    /// Of ARP: the answer
    Reply,
    /// Of ICMP: ping
    EchoRequest,
    /// Of ICMP: the answer to a ping
    EchoReply,
    /// Of NDP: who has the address
    Solicitation,
    /// Of NDP: the answer
    Advertisement,
    /// Of NDP: where is a router
    RouterSolicitation,
    /// Of NDP: a router is here
    RouterAdvertisement,
    /// Of NDP: there is a better way
    Redirect,
}

/// TCP flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TcpFlags {
    /// The first packet of a connection.
    #[default]
    Syn,
    /// Of its middle.
    Ack,
    /// Of its end.
    Fin,
    /// Its abrupt end.
    Rst,
}

impl TcpFlags {
    fn bits(self) -> u8 {
        match self {
            Self::Syn => 0x02,
            Self::Ack => 0x10,
            Self::Fin => 0x11,
            Self::Rst => 0x04,
        }
    }
}

/// A packet to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) message: Option<Message>,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) flags: TcpFlags,
    /// Of the whole packet from its IP header on; as long as it has to be, if not given.
    pub(super) length: Option<usize>,
    pub(super) hop_limit: Option<u8>,
    pub(super) is_fragment: bool,
    pub(super) has_options: bool,
    /// MAC addresses: of whom it is for, unless it is for a group, and of its sender.
    pub(super) macs: [Mac; 2],
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

impl Wanted {
    /// The frame, from its Ethernet header on.
    pub(super) fn frame(&self) -> Result<Vec<u8>, PacketError> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => match self.protocol {
                Protocol::Arp => self.arp(source, destination),
                _ => self.over_ipv4(source, destination),
            },
            (IpAddr::V6(source), IpAddr::V6(destination)) => match self.protocol {
                Protocol::Ndp => self.ndp(source, destination),
                _ => self.over_ipv6(source, destination),
            },
            (source_address, destination) => {
                Err(PacketError::Families { source_address, destination })
            }
        }
    }

    fn arp(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Result<Vec<u8>, PacketError> {
        let [host_mac, mac] = self.macs;
        let (operation, to, target_mac) = match self.message.unwrap_or(Message::Request) {
            Message::Request => (1_u8, [0xff; 6], [0; 6]),
            Message::Reply => (2, host_mac, host_mac),
            message => return Err(self.no_such(message)),
        };
        let header = [0, 1, 8, 0, 6, 4, 0, operation];
        let addresses = [&mac[..], &sender.octets(), &target_mac, &target.octets()].concat();
        Ok(ethernet(to, mac, ARP, &[&header[..], &addresses].concat()))
    }

    fn ndp(&self, source: Ipv6Addr, target: Ipv6Addr) -> Result<Vec<u8>, PacketError> {
        let mac = self.macs[1];
        let with_mac = |kind: u8| [&[kind, 1], &mac[..]].concat();
        let target_octets = target.octets();
        let local = link_local(mac);
        let (source, destination, icmp_type, body) =
            match self.message.unwrap_or(Message::Solicitation) {
                Message::Solicitation => {
                    let [.., a, b, c] = target_octets;
                    let group =
                        Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
                    let body = [&[0; 4], &target_octets[..], &with_mac(1)].concat();
                    (source, group, 135, body)
                }
                Message::Advertisement => {
                    let body = [&[0x60, 0, 0, 0], &source.octets()[..], &with_mac(2)].concat();
                    (source, target, 136, body)
                }
                Message::RouterSolicitation => {
                    (local, ALL_ROUTERS, 133, [&[0; 4][..], &with_mac(1)].concat())
                }
                Message::RouterAdvertisement => {
                    let body = [64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
                    (local, ALL_NODES, 134, [&body[..], &with_mac(1)].concat())
                }
                Message::Redirect => {
                    let body = [&[0; 4], &local.octets()[..], &target_octets].concat();
                    (local, Ipv6Addr::from(GATEWAY_V6), 137, body)
                }
                message => return Err(self.no_such(message)),
            };
        let mut message = [&[icmp_type, 0, 0, 0], &body[..]].concat();
        let sum = checksum(&pseudo_header(source.into(), destination.into(), ICMPV6, &message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let packet = ipv6(source, destination, ICMPV6, self.hop_limit.unwrap_or(255), &message);
        Ok(ethernet(self.to(destination.into()), mac, IPV6, &packet))
    }

    fn over_ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Vec<u8>, PacketError> {
        /// No operation, three times, and the end of options.
        const OPTIONS: [u8; 4] = [1, 1, 1, 0];
        const MORE_FRAGMENTS: u8 = 0x20;
        let options: &[u8] = if self.has_options { &OPTIONS } else { &[] };
        let header_len = 20 + options.len();
        let (number, payload) = self.payload(header_len)?;
        let length = (header_len + payload.len()) as u16;
        let fragment = if self.is_fragment { MORE_FRAGMENTS } else { 0 };
        let hop_limit = self.hop_limit.unwrap_or(64);
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(length.to_be_bytes());
        header.extend([0x6d, 0x67, fragment, 0, hop_limit, number, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let packet = [header, payload].concat();
        Ok(ethernet(self.to(destination.into()), self.macs[1], IPV4, &packet))
    }

    fn over_ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Result<Vec<u8>, PacketError> {
        let mut extensions = Vec::new();
        let (number, payload) =
            self.payload(40 + 8 * (usize::from(self.has_options) + usize::from(self.is_fragment)))?;
        let mut next = number;
        if self.is_fragment {
            extensions.splice(..0, [next, 0, 0, 1, 0, 0, 0x6d, 0x67]);
            next = 44;
        }
        if self.has_options {
            // One option, which fills the header up (`PadN`).
            extensions.splice(..0, [next, 0, 1, 4, 0, 0, 0, 0]);
            next = 60;
        }
        let hop_limit = self.hop_limit.unwrap_or(64);
        let packet = ipv6(source, destination, next, hop_limit, &[extensions, payload].concat());
        Ok(ethernet(self.to(destination.into()), self.macs[1], IPV6, &packet))
    }

    /// What is behind the IP header, and the number of its protocol.
    fn payload(&self, ip_len: usize) -> Result<(u8, Vec<u8>), PacketError> {
        let ports = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        let (number, mut header, place) = match self.protocol {
            Protocol::Tcp => {
                let tail =
                    [0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.flags.bits(), 0xff, 0xff, 0, 0, 0, 0];
                (6, [&ports[..], &tail].concat(), Some(16))
            }
            Protocol::Udp => (17, [&ports[..], &[0; 4]].concat(), Some(6)),
            Protocol::Sctp => {
                (132, [&ports[..], &[0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 4]].concat(), None)
            }
            Protocol::Icmp => {
                let is_request = match self.message.unwrap_or(Message::EchoRequest) {
                    Message::EchoRequest => true,
                    Message::EchoReply => false,
                    message => return Err(self.no_such(message)),
                };
                let (number, icmp_type) = match (self.source.is_ipv4(), is_request) {
                    (true, true) => (ICMP, 8),
                    (true, false) => (ICMP, 0),
                    (false, true) => (ICMPV6, 128),
                    (false, false) => (ICMPV6, 129),
                };
                let identifier = self.source_port.to_be_bytes();
                (number, [&[icmp_type, 0, 0, 0], &identifier[..], &[0, 1]].concat(), Some(2))
            }
            Protocol::Arp | Protocol::Ndp => {
                let family = if self.source.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(PacketError::Protocol { protocol: self.protocol.name(), family });
            }
            Protocol::Other(number) => (number, Vec::new(), None),
        };
        let headers = ip_len + header.len();
        let length = self.length.unwrap_or(headers);
        let data = length.checked_sub(headers).ok_or(PacketError::Length { length, headers })?;
        header.resize(header.len() + data, 0);
        if self.protocol == Protocol::Udp {
            let len = (header.len() as u16).to_be_bytes();
            header[4..6].copy_from_slice(&len);
        }
        if let Some(place) = place {
            let sum = match number {
                ICMP => checksum(&header),
                _ => checksum(&pseudo_header(self.source, self.destination, number, &header)),
            };
            header[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Ok((number, header))
    }

    /// Whom the frame is for: a group has a MAC address of its own.
    fn to(&self, destination: IpAddr) -> Mac {
        match destination {
            IpAddr::V4(address) if address.is_broadcast() => [0xff; 6],
            IpAddr::V4(address) if address.is_multicast() => {
                let [_, b, c, d] = address.octets();
                [1, 0, 0x5e, b & 0x7f, c, d]
            }
            IpAddr::V6(address) if address.is_multicast() => {
                let [.., a, b, c, d] = address.octets();
                [0x33, 0x33, a, b, c, d]
            }
            _ => self.macs[0],
        }
    }

    fn no_such(&self, message: Message) -> PacketError {
        let message = message.to_possible_value().map(|value| value.get_name().to_owned());
        let message = message.unwrap_or_default();
        PacketError::Message { protocol: self.protocol.name(), message }
    }
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The gateway that a pod sees.
pub(super) fn gateway(is_ipv4: bool) -> IpAddr {
    if is_ipv4 { Ipv4Addr::from(GATEWAY_V4).into() } else { Ipv6Addr::from(GATEWAY_V6).into() }
}

/// The link-local address that a MAC address gives (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f].into()
}

fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let start = [0x60, 0, 0, 0, high, low, next, hops];
    [&start[..], &source.octets(), &destination.octets(), payload].concat()
}

/// A transport header and its data behind what the checksum covers of the IP header.
fn pseudo_header(source: IpAddr, destination: IpAddr, number: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => Ipv6Addr::octets(&address).to_vec(),
    };
    let [a, b, c, d] = (payload.len() as u32).to_be_bytes();
    let tail = [a, b, c, d, 0, 0, 0, number];
    [&octets(source), &octets(destination), &tail[..], payload].concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
