//! Packets built byte by byte, for the tests that hand them to the programs. Written apart from the
//! programs' own headers, so that a mistake there is not made here again. The unit tests of the
//! kernel half include this file too: it depends on nothing.

/// A MAC address.
pub type Mac = [u8; 6];

/// TCP flags.
pub mod tcp_flags {
    /// Ends a connection in one direction.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// A frame of an EtherType.
pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 header to be.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Number of the protocol of the payload.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// A header without options, of a packet in one piece.
    pub fn new(src: [u8; 4], dst: [u8; 4], protocol: u8) -> Self {
        Self { src, dst, protocol, ttl: 64, fragment: 0, options: Vec::new() }
    }

    /// The packet with `payload`.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total_len = (header_len + payload.len()) as u16;
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(total_len.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.src);
        header.extend(self.dst);
        header.extend(&self.options);
        let checksum = checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        [header, payload.to_vec()].concat()
    }
}

/// An IPv6 header to be.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Number of the next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
}

impl Ipv6 {
    /// A header with the usual hop limit.
    pub fn new(src: [u8; 16], dst: [u8; 16], next_header: u8) -> Self {
        Self { src, dst, next_header, hop_limit: 64 }
    }

    /// The packet with `payload`.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        let tail = [len[0], len[1], self.next_header, self.hop_limit];
        [&[0x60, 0, 0, 0], &tail[..], &self.src, &self.dst, payload].concat()
    }
}

/// A TCP header of 20 bytes and some data.
pub fn tcp(src_port: u16, dst_port: u16, flags: u8) -> Vec<u8> {
    let mut segment = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"data");
    segment
}

/// A UDP datagram without a checksum.
pub fn udp(src_port: u16, dst_port: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len() as u16).to_be_bytes();
    [&src_port.to_be_bytes()[..], &dst_port.to_be_bytes(), &len, &[0, 0], data].concat()
}

/// An SCTP common header and a chunk header.
pub fn sctp(src_port: u16, dst_port: u16) -> Vec<u8> {
    let ports = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
    [&ports[..], &[0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 4]].concat()
}

/// An ICMP or ICMPv6 echo request or reply, by its type.
pub fn echo(icmp_type: u8, identifier: u16) -> Vec<u8> {
    [&[icmp_type, 0, 0, 0], &identifier.to_be_bytes()[..], &[0, 1], b"ping"].concat()
}

/// An ICMP or ICMPv6 error, by its type, about a packet.
pub fn icmp_error(icmp_type: u8, quoted: &[u8]) -> Vec<u8> {
    [&[icmp_type, 0, 0, 0, 0, 0, 0, 0], quoted].concat()
}

/// ARP for IPv4 over Ethernet.
pub fn arp(operation: u16, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4];
    arp.extend(operation.to_be_bytes());
    arp.extend(sender.0);
    arp.extend(sender.1);
    arp.extend(target.0);
    arp.extend(target.1);
    arp
}

/// A neighbour solicitation with its source's MAC address as an option, checksum included.
pub fn solicitation(src: [u8; 16], dst: [u8; 16], target: [u8; 16], mac: Mac) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target);
    message.extend([1, 1]);
    message.extend(mac);
    let checksum = icmpv6_checksum(src, dst, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// The Internet checksum. Over bytes that include a right one it is 0.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of an ICMPv6 message, pseudo-header included. Over a message with a right one it
/// is 0.
pub fn icmpv6_checksum(src: [u8; 16], dst: [u8; 16], message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    checksum(&[&src[..], &dst, &len, &[0, 0, 0, 58], message].concat())
}
