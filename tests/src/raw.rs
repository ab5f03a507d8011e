//! Frames of any content, sent by an interface of a pod that is privileged over its namespace, and frames
//! as they go over one.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use crate::pod::Pod;
use crate::traffic::PATIENCE;

impl Pod<'_> {
    /// Sends a frame, from its Ethernet header on, as it is.
    ///
    /// # Panics
    /// When the interface does not exist or refuses it.
    pub fn send_frame(&self, ifname: &str, frame: &[u8]) {
        let ifindex = self.ifindex(ifname);
        self.enter(|| send(ifindex, frame, Layout::Linear)).expect("send a frame");
    }

    /// Sends a frame of more than a page in the way that leaves nothing but its Ethernet header in
    /// the linear part of the kernel's buffer.
    ///
    /// # Panics
    /// When the frame is too short for that, or as with [`send_frame`](Self::send_frame).
    pub fn send_scattered_frame(&self, ifname: &str, frame: &[u8]) {
        assert!(frame.len() > 4096, "the kernel keeps a frame of one page together");
        let ifindex = self.ifindex(ifname);
        self.enter(|| send(ifindex, frame, Layout::Scattered)).expect("send a frame");
    }

    fn ifindex(&self, ifname: &str) -> u32 {
        let link =
            self.netlink(async |netlink| netlink.link_by_name(ifname).await.expect("look up"));
        link.expect("interface").index
    }
}

/// How the kernel is to lay a frame out in its buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Linear,
    Scattered,
}

/// `struct virtio_net_hdr`: no checksum to fill in, no segments, a header of 14 bytes.
const ETHERNET_HEADER_ALONE: [u8; 10] = [0, 0, 14, 0, 0, 0, 0, 0, 0, 0];
/// `PACKET_VNET_HDR` of `linux/if_packet.h`.
const PACKET_VNET_HDR: libc::c_int = 15;

#[expect(unsafe_code, reason = "packet(7) sockets have no safe wrapper among the dependencies")]
fn send(ifindex: u32, frame: &[u8], layout: Layout) -> io::Result<()> {
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned it, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut bytes = frame.to_vec();
    if layout == Layout::Scattered {
        let on: libc::c_int = 1;
        // SAFETY: the pointer is to an integer that lives through the call, with its own size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        bytes.splice(..0, ETHERNET_HEADER_ALONE);
    }
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    // SAFETY: the pointers are to a vector and to a struct that live through the call, each with its
    // own length.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What goes over an interface, from now on.
#[derive(Debug)]
pub struct Capture(UdpSocket);

impl Capture {
    /// Of an interface of the calling thread's namespace.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn on(ifindex: u32) -> Self {
        Self(listen(ifindex).expect("capture"))
    }

    /// The next frame that is wanted.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn next(&self, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let mut frame = vec![0; 1 << 17];
        loop {
            self.0.set_read_timeout(Some(PATIENCE / 10)).expect("timeout");
            match self.0.recv(&mut frame) {
                Ok(length) if is_wanted(&frame[..length]) => return frame[..length].to_vec(),
                _ => assert!(Instant::now() < deadline, "no such frame"),
            }
        }
    }
}

#[expect(unsafe_code, reason = "packet(7) sockets have no safe wrapper among the dependencies")]
fn listen(ifindex: u32) -> io::Result<UdpSocket> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: takes three integers.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all))
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned it, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the pointer is to a struct that lives through the call, with its own size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
}

/// Has the kernel cut what is sent at once into datagrams of so many bytes, where they leave the host
/// (`UDP_SEGMENT`).
///
/// # Panics
/// When it cannot.
#[expect(unsafe_code, reason = "the standard library does not know this option")]
pub fn segment(socket: &UdpSocket, bytes: u16) {
    let bytes = libc::c_int::from(bytes);
    // SAFETY: the pointer is to an integer that lives through the call, with its own size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
