//! Frames of any content, sent by an interface of a pod that is privileged over its namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::pod::Pod;

impl Pod<'_> {
    /// Sends a frame, from its Ethernet header on, as it is.
    ///
    /// # Panics
    /// When the interface does not exist or refuses it.
    pub fn send_frame(&self, ifname: &str, frame: &[u8]) {
        let link =
            self.netlink(async |netlink| netlink.link_by_name(ifname).await.expect("look up"));
        let ifindex = link.expect("interface").index;
        self.enter(|| send(ifindex, frame)).expect("send a frame");
    }
}

#[expect(unsafe_code, reason = "packet(7) sockets have no safe wrapper among the dependencies")]
fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: takes three integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned it, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    // SAFETY: the pointers are to a slice and to a struct that live through the call, each with its
    // own length.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
