//! SCTP packets by raw sockets: a kernel's conntrack and NAT may know the protocol where its sockets
//! are missing.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto};

use crate::traffic::{PATIENCE, Place, receive};

/// Verification tags: what the client and the server have their packets marked with.
const CLIENT_TAG: u32 = 0x0c11_e217;
const SERVER_TAG: u32 = 0x005e_27e2;
const COMMON_HEADER_LEN: usize = 12;

/// A chunk on its way.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Whether the client sends it.
    pub of_client: bool,
    /// From its type on.
    pub bytes: Vec<u8>,
    tag: u32,
}

/// The packets of a whole association (RFC 9260, section 5.1): four that make it, then data both ways.
#[must_use]
pub fn association() -> Vec<Chunk> {
    let init = |chunk_type: u8, own_tag: u32| {
        let tag = own_tag.to_be_bytes();
        [&[chunk_type, 0, 0, 20][..], &tag, &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat()
    };
    let data =
        |text: &[u8; 4]| [&[0, 3, 0, 20][..], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], text].concat();
    let client = |tag, bytes| Chunk { of_client: true, bytes, tag };
    let server = |bytes| Chunk { of_client: false, bytes, tag: CLIENT_TAG };
    vec![
        client(0, init(1, CLIENT_TAG)),
        server(init(2, SERVER_TAG)),
        client(SERVER_TAG, b"\x0a\0\0\x08cook".to_vec()),
        server(vec![11, 0, 0, 4]),
        client(SERVER_TAG, data(b"ask?")),
        server(data(b"yes.")),
        client(SERVER_TAG, data(b"sure")),
        server(data(b"yes!")),
    ]
}

/// What gets every SCTP packet that comes to a pod.
#[derive(Debug)]
pub struct Sctp {
    // Of the standard library's types the one that sends and receives packets with their addresses.
    raw: UdpSocket,
    has_ip_header: bool,
}

/// A packet that came.
#[derive(Debug)]
pub struct Heard {
    /// Whose address and port it has.
    pub from: SocketAddr,
    /// The port that it came to.
    pub to_port: u16,
    /// Its chunk.
    pub chunk: Vec<u8>,
}

impl Sctp {
    /// Opens the socket.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn new(place: &impl Place, ipv4: bool) -> Self {
        let family = if ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = Some(ipproto::SCTP);
        let socket = place
            .enter(|| net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol));
        let raw = UdpSocket::from(socket.expect("a raw socket"));
        raw.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { raw, has_ip_header: ipv4 }
    }

    /// Sends a packet of one chunk.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn send(&self, port: u16, target: SocketAddr, chunk: &Chunk) {
        let mut packet = [port.to_be_bytes(), target.port().to_be_bytes()].concat();
        packet.extend(chunk.tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(&chunk.bytes);
        let checksum = crc32c(&packet).to_le_bytes();
        packet[8..COMMON_HEADER_LEN].copy_from_slice(&checksum);
        // The port of a raw socket's address is the protocol's number, or nothing.
        self.raw.send_to(&packet, SocketAddr::new(target.ip(), 0)).expect("send a packet");
    }

    /// Receives a packet, whose checksum is right.
    ///
    /// # Errors
    /// When none comes in time.
    ///
    /// # Panics
    /// When it is broken.
    pub fn receive(&self) -> io::Result<Heard> {
        let mut buffer = [0; 256];
        let (len, from) = receive(&self.raw, &mut buffer)?;
        let ip_header_len = if self.has_ip_header { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let packet = &mut buffer[ip_header_len..len];
        let checksum: [u8; 4] = packet[8..COMMON_HEADER_LEN].try_into().expect("four bytes");
        packet[8..COMMON_HEADER_LEN].fill(0);
        assert_eq!(crc32c(packet), u32::from_le_bytes(checksum), "checksum");
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let from_ip: IpAddr = from.ip();
        Ok(Heard {
            from: SocketAddr::new(from_ip, port(0)),
            to_port: port(2),
            chunk: packet[COMMON_HEADER_LEN..].to_vec(),
        })
    }
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
