//! The kernel's share of a dataplane of TC programs: two pods with a veth pair each, and on the host's
//! side of both a program that does nothing but redirect all that comes to the other pod.
//!
//! It looks at no packet, so the pods know each other's MAC address beforehand, and it protects nobody.

use std::ffi::{CStr, CString, c_long};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use margay_tests::{Node, Pod};

use crate::peer::Pair;

/// Of the host's side of both pairs.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// Connects two sandboxes of a node.
pub(crate) fn connect<'node>(
    node: &'node Node,
    client: Pod<'node>,
    server: Pod<'node>,
) -> Result<Pair<'node>> {
    for (pod, host) in [(&client, "client"), (&server, "server")] {
        let netns = pod.netns_path().display().to_string();
        let pair = ["ip", "link", "add", host, "address", HOST_MAC, "mtu", "1500", "type", "veth"];
        node.run(&[&pair[..], &["peer", "name", "eth0", "mtu", "1500", "netns", &netns]].concat());
        node.run(&["ip", "link", "set", host, "up"]);
    }
    for (from, to) in [("client", "server"), ("server", "client")] {
        let pin = node.path("bpf").join(from);
        let link = node.netlink(async |netlink| netlink.link_by_name(to).await)?;
        pin_redirect(link.context("no link")?.index, &pin).context("a program that redirects")?;
        let pin = pin.display().to_string();
        node.run(&["tc", "qdisc", "add", "dev", from, "clsact"]);
        let filter = ["tc", "filter", "add", "dev", from, "ingress", "bpf", "direct-action"];
        node.run(&[&filter[..], &["object-pinned", &pin]].concat());
    }
    let pair = Pair::addressed(client, server);
    for (pod, other) in [(&pair.client, 2), (&pair.server, 1)] {
        for ip in [format!("10.244.0.{other}"), format!("fd00:10:244::{other}")] {
            pod.run(&["ip", "neigh", "add", &ip, "lladdr", HOST_MAC, "dev", "eth0"]);
        }
    }
    Ok(pair)
}

/// Pins a program that sends whatever it sees into the namespace of the peer of an interface.
fn pin_redirect(ifindex: u32, pin: &Path) -> io::Result<()> {
    /// `BPF_FUNC_redirect_peer`.
    const REDIRECT_PEER: u32 = 155;
    let instruction = |code: u8, register: u8, immediate: u32| {
        let [a, b, c, d] = immediate.to_ne_bytes();
        [code, register, 0, 0, a, b, c, d]
    };
    let instructions = [
        instruction(0xb7, 1, ifindex), // r1 = ifindex
        instruction(0xb7, 2, 0),       // r2 = 0, the flags
        instruction(0x85, 0, REDIRECT_PEER),
        instruction(0x95, 0, 0), // return what it returned
    ];
    let program = bpf_load(&instructions)?;
    bpf_pin(&program, &CString::new(pin.as_os_str().as_bytes())?)
}

/// The attributes of `bpf(2)` that matter here (`union bpf_attr`, `include/uapi/linux/bpf.h`). The
/// kernel takes the rest for zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct PinAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

fn bpf_load(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just returned it, and nothing else owns it.
    #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper among the dependencies")]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf_pin(program: &OwnedFd, path: &CStr) -> io::Result<()> {
    const BPF_OBJ_PIN: c_long = 6;
    let fd = program.as_raw_fd().cast_unsigned();
    let path = path.as_ptr().addr() as u64;
    bpf(BPF_OBJ_PIN, &PinAttributes { path, fd, flags: 0 }).map(drop)
}

fn bpf<T>(command: c_long, attributes: &T) -> io::Result<RawFd> {
    let attributes: *const T = attributes;
    // SAFETY: the attributes live through the call, with their own size; what they point to is
    // borrowed by the callers until it returns, and the kernel only reads it.
    #[expect(unsafe_code, reason = "bpf(2) has no safe wrapper among the dependencies")]
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as RawFd) }
}
