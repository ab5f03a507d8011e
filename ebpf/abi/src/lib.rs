//! The keys and values of margay's pinned maps: the one definition that the kernel half
//! (`ebpf`) and the userspace half (`datapath`) share.
//!
//! Invariant: every type is `#[repr(C)]`, free of padding and of a fixed size, so that its bytes
//! are the same on both sides and in `bpftool map dump`. A change to any of them, or to the
//! meaning of a number, bumps [`ABI_VERSION`], which is part of every pin's path: pins of another
//! version are left alone, never reused.
//!
//! Addresses and ports are byte arrays in network byte order; everything else is native-endian.
#![no_std]

mod counter;
pub mod event;
mod node;

use bytemuck::{Pod, Zeroable};

pub use counter::Counter;
pub use node::{Overlay, PodToNode, Remote, mapped_ipv4, remote_mode};

/// Version of everything in this crate. Part of the pin path.
pub const ABI_VERSION: u32 = 4;

/// Map names, at most 15 bytes (`BPF_OBJ_NAME_LEN` − 1): the same in the ELF, in bpftool and in the
/// BPF file system.
pub mod map_name {
    /// [`PodInfo`](crate::PodInfo) by IPv4 address (`[u8; 4]`), hash.
    pub const PODS_V4: &str = "pods_v4";
    /// [`PodInfo`](crate::PodInfo) by IPv6 address (`[u8; 16]`), hash.
    pub const PODS_V6: &str = "pods_v6";
    /// [`Flow`](crate::Flow) by [`FlowKeyV4`](crate::FlowKeyV4), LRU hash.
    pub const FLOWS_V4: &str = "flows_v4";
    /// [`Flow`](crate::Flow) by [`FlowKeyV6`](crate::FlowKeyV6), LRU hash.
    pub const FLOWS_V6: &str = "flows_v6";
    /// [`Traffic`](crate::Traffic) by [`Counter`](crate::Counter), per-CPU array.
    pub const STATS: &str = "stats";
    /// [`Settings`](crate::Settings), array of one.
    pub const SETTINGS: &str = "settings";
    /// [`Remote`](crate::Remote) by IPv4 prefix, LPM trie: a prefix length in 32 bits and `[u8; 4]`.
    pub const REMOTE_V4: &str = "remote_v4";
    /// [`Remote`](crate::Remote) by IPv6 prefix, LPM trie: a prefix length in 32 bits and `[u8; 16]`.
    pub const REMOTE_V6: &str = "remote_v6";
    /// [`Overlay`](crate::Overlay), array of one.
    pub const OVERLAY: &str = "overlay";
    /// Programs that others go on in, if they are there, program array: the slots are those of
    /// [`tail_call`](crate::event::tail_call).
    pub const TAIL_CALLS: &str = "tail_calls";
    /// All of the above.
    pub const ALL: [&str; 10] = [
        PODS_V4, PODS_V6, FLOWS_V4, FLOWS_V6, STATS, SETTINGS, REMOTE_V4, REMOTE_V6, OVERLAY,
        TAIL_CALLS,
    ];
}

/// Program names, the same in the ELF, in bpftool and in the BPF file system. Named from the host's
/// view.
pub mod program_name {
    /// TC ingress of the host veth: what the pod sends.
    pub const FROM_POD: &str = "from_pod";
    /// TC egress of the host veth: what the host's stack sends to the pod.
    pub const TO_POD: &str = "to_pod";
    /// Takes over from `from_pod` what that does not deliver, on a node among others.
    pub const POD_TO_NODE: &str = "pod_to_node";
    /// TC ingress of the VXLAN device: what other nodes send through the overlay.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// TC egress of the VXLAN device: what goes to other nodes through the overlay.
    pub const TO_OVERLAY: &str = "to_overlay";
    /// TC ingress of the underlay's interface: what comes from outside.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// TC egress of the underlay's interface: what goes outside.
    pub const TO_UPLINK: &str = "to_uplink";
    /// Reports what the others have to tell, to one who listens.
    pub const REPORT: &str = "report";
    /// All but the last.
    pub const ALL: [&str; 7] =
        [FROM_POD, TO_POD, POD_TO_NODE, FROM_OVERLAY, TO_OVERLAY, FROM_UPLINK, TO_UPLINK];
}

/// Entries of `pods_v4` and of `pods_v6` unless the loader is told otherwise. Not preallocated.
pub const DEFAULT_MAX_PODS: u32 = 65_536;
/// Entries of `flows_v4` and of `flows_v6` unless the loader is told otherwise.
pub const DEFAULT_MAX_FLOWS: u32 = 131_072;
/// Entries of `remote_v4` and of `remote_v6`: blocks of other nodes. Not preallocated.
pub const MAX_REMOTES: u32 = 65_536;

/// The gateway that an IPv4 pod sees. It exists on no interface; `from_pod` answers for it.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];
/// The gateway that an IPv6 pod sees, `fe80::ecee:eeff:feee:eeee`: the link-local address that
/// [`HOST_VETH_MAC`] gives.
pub const GATEWAY_V6: [u8; 16] =
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee];
/// MAC address of every host veth, as the standard Calico plugin sets it.
pub const HOST_VETH_MAC: [u8; 6] = [0xee; 6];

/// Value of `pods_v4` and `pods_v6`: where a pod's address is. Written by the CNI plugin as the
/// last step of an ADD and removed first on DEL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PodInfo {
    /// Interface index of the host veth, in the host's network namespace.
    pub ifindex: u32,
    /// MTU of the veth pair in bytes, network layer; 0 for a pod that is [shaped](pod_flags::SHAPED).
    pub mtu: u32,
    /// Bits of [`pod_flags`].
    pub flags: u32,
    /// MAC address of the pod's end: the only source the pod may use, and the destination of what
    /// is delivered to it.
    pub pod_mac: [u8; 6],
    /// MAC address of the host veth: what ARP and NDP answers carry.
    pub host_mac: [u8; 6],
}

/// Bits of [`PodInfo::flags`].
pub mod pod_flags {
    /// Answer ARP requests and neighbour solicitations for any address, not for the gateway alone.
    pub const ANSWER_ANY: u32 = 1 << 0;
    /// Its bandwidth is limited by qdiscs, which only the stack takes packets through: nothing is
    /// delivered directly to or from it. [`PodInfo::mtu`](crate::PodInfo::mtu) is 0 then, so that
    /// programs of a build that does not know this bit leave what is for the pod to the stack too.
    pub const SHAPED: u32 = 1 << 1;
}

/// A packet's five-tuple, and key of `flows_v4` when it is [canonical](Self::canonical). Aligned so that
/// it is made, copied and hashed by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKeyV4 {
    /// Source address; in the table, that of the end that is less.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port, network byte order. For ICMP echo the identifier, in both port fields.
    pub src_port: [u8; 2],
    /// Destination port, network byte order. For ICMP echo the identifier, in both port fields.
    pub dst_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Key of `flows_v6`; the fields are those of [`FlowKeyV4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKeyV6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, network byte order. For ICMPv6 echo the identifier, in both port fields.
    pub src_port: [u8; 2],
    /// Destination port, network byte order. For ICMPv6 echo the identifier, in both port fields.
    pub dst_port: [u8; 2],
    /// IP protocol number (the last next-header).
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Value of `flows_v4` and `flows_v6`. Written by the programs alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// One of [`flow_verdict`].
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Values of [`Flow::verdict`].
pub mod flow_verdict {
    /// The host's stack has seen the flow (it may be under NAT there): all of it goes to the stack.
    pub const VIA_STACK: u8 = 1;
    /// The flow is between two local pods as it is: it is delivered without the host's stack.
    pub const DIRECT: u8 = 2;
}

/// Value of `stats`, one per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets as the program sees them (a GSO packet counts once).
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// Value of `settings`: what is switched while the programs run. All zero by default.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Until when somebody listens to events, in nanoseconds of `CLOCK_MONOTONIC`; 0 for nobody. Whoever
    /// listens moves it on, so that one who dies leaves nothing switched on.
    pub listened_until_ns: u64,
}

const _: () = {
    assert!(size_of::<PodInfo>() == 24);
    assert!(size_of::<FlowKeyV4>() == 16);
    assert!(size_of::<FlowKeyV6>() == 40);
    assert!(size_of::<Flow>() == 4);
    assert!(size_of::<Traffic>() == 16);
    assert!(size_of::<Settings>() == 8);
};

impl FlowKeyV4 {
    /// The five-tuple of the packets that go the other way.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }

    /// The one key of both directions in the table: the end that is less, by address and then by
    /// port, is the source.
    #[must_use]
    #[inline(always)]
    pub fn canonical(&self) -> Self {
        if self.is_canonical() { *self } else { self.reversed() }
    }

    /// Whether it is its own [`canonical`](Self::canonical) key.
    #[must_use]
    #[inline(always)]
    pub fn is_canonical(&self) -> bool {
        let src = (u32::from_be_bytes(self.src), u16::from_be_bytes(self.src_port));
        let dst = (u32::from_be_bytes(self.dst), u16::from_be_bytes(self.dst_port));
        src <= dst
    }
}

impl FlowKeyV6 {
    /// The five-tuple of the packets that go the other way.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }

    /// The one key of both directions in the table: the end that is less, by address and then by
    /// port, is the source.
    #[must_use]
    #[inline(always)]
    pub fn canonical(&self) -> Self {
        if self.is_canonical() { *self } else { self.reversed() }
    }

    /// Whether it is its own [`canonical`](Self::canonical) key.
    #[must_use]
    #[inline(always)]
    pub fn is_canonical(&self) -> bool {
        // Not u128, of which LLVM makes arguments that BPF has no registers for.
        let halves = |address| {
            let [high, low]: [[u8; 8]; 2] = bytemuck::cast(address);
            (u64::from_be_bytes(high), u64::from_be_bytes(low))
        };
        let src = (halves(self.src), u16::from_be_bytes(self.src_port));
        let dst = (halves(self.dst), u16::from_be_bytes(self.dst_port));
        src <= dst
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::bytes_of;

    use super::*;

    #[test]
    fn names_fit_into_the_kernels_object_names() {
        let names = map_name::ALL.into_iter().chain(event::report_map::ALL);
        for name in names.chain(program_name::ALL) {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn pod_info_has_the_bytes_of_the_abi() {
        let pod = PodInfo { ifindex: 1, mtu: 2, flags: 3, pod_mac: [4; 6], host_mac: [5; 6] };

        let numbers = [1u32.to_ne_bytes(), 2u32.to_ne_bytes(), 3u32.to_ne_bytes()];
        assert_eq!(bytes_of(&pod)[..12], *numbers.as_flattened());
        assert_eq!(bytes_of(&pod)[12..], [4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5]);
    }

    #[test]
    fn flow_key_has_the_bytes_of_the_abi() {
        let key = FlowKeyV4 {
            src: [10, 0, 0, 1],
            dst: [10, 0, 0, 2],
            src_port: [3, 4],
            dst_port: [5, 6],
            protocol: 7,
            reserved: [0; 3],
        };

        assert_eq!(bytes_of(&key), [10, 0, 0, 1, 10, 0, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0]);
    }

    #[test]
    fn reversing_a_key_twice_gives_it_back() {
        let key = FlowKeyV6 {
            src: [1; 16],
            dst: [2; 16],
            src_port: [3; 2],
            dst_port: [4; 2],
            protocol: 5,
            reserved: [0; 3],
        };

        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }

    #[test]
    fn both_directions_have_one_canonical_key_and_no_two_flows_share_one() {
        let tuple = |src: u8, dst: u8, ports: [u16; 2]| FlowKeyV6 {
            src: [src; 16],
            dst: [dst; 16],
            src_port: ports[0].to_be_bytes(),
            dst_port: ports[1].to_be_bytes(),
            protocol: 6,
            reserved: [0; 3],
        };
        let there = tuple(1, 2, [0x0201, 0x0102]);
        for key in [there, tuple(1, 1, [0x0102, 0x0201]), tuple(1, 2, [1, 1])] {
            assert_eq!(key.canonical(), key);
            assert_eq!(key.reversed().canonical(), key);
        }
        assert_ne!(tuple(1, 2, [0x0102, 0x0201]).canonical(), there);

        let v4 = FlowKeyV4 {
            src: [10, 0, 2, 1],
            dst: [10, 0, 1, 2],
            src_port: [0, 1],
            dst_port: [0, 2],
            protocol: 6,
            reserved: [0; 3],
        };
        assert_eq!(v4.canonical(), v4.reversed());
        assert_eq!(v4.reversed().canonical(), v4.reversed());
    }
}
