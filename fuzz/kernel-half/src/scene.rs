//! Where a fuzzed packet appears: two pods on a node, and flows of which all or nothing is known.
//!
//! The first bytes of an input choose the scene, the rest is the frame as it is.

use std::cell::RefCell;

use margay_abi::{
    FlowKeyV4, FlowKeyV6, HOST_VETH_MAC, Overlay, PodInfo, Remote, flow_verdict, pod_flags,
};

use crate::buffer::Buffer;
use crate::ip::{Ipv4, Ipv6};
use crate::maps::Tables;

/// The pod whose interface the packet is at.
pub(crate) const OWN: Pod = Pod {
    ifindex: 5,
    mac: [2, 0, 0, 0, 0, 5],
    v4: [[10, 244, 0, 5], [10, 244, 1, 5]],
    v6: [v6(5), v6(0x15)],
};

/// Another pod of the node.
pub(crate) const OTHER: Pod = Pod {
    ifindex: 6,
    mac: [2, 0, 0, 0, 0, 6],
    v4: [[10, 244, 0, 6], [10, 244, 1, 6]],
    v6: [v6(6), v6(0x16)],
};

/// The beginning of addresses of pods on another node.
pub(crate) const FAR_V4: [u8; 3] = [10, 244, 9];
pub(crate) const FAR_V6: [u8; 15] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// MTU of the other pod.
pub(crate) const OTHER_MTU: u32 = 1400;
/// MAC address of the other pod's host veth, unlike every veth's of a real node, so that a mix-up
/// shows.
pub(crate) const OTHER_HOST_MAC: [u8; 6] = [0xee, 0xee, 0xee, 0xee, 0xee, 6];

/// A pod with two addresses of each family.
pub(crate) struct Pod {
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [[u8; 4]; 2],
    pub(crate) v6: [[u8; 16]; 2],
}

const fn v6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A packet and its surroundings.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) packet: Buffer,
    pub(crate) maps: Maps,
    /// Whether the stack has it from `from_pod` and left it alone, for `to_pod`.
    pub(crate) was_in_from_pod: bool,
}

/// Bits of an input's first byte.
mod choice {
    pub(super) const ANSWER_ANY: u8 = 1;
    pub(super) const VLAN_TAG: u8 = 2;
    pub(super) const KNOWN: u8 = 4;
    pub(super) const VIA_STACK: u8 = 8;
    pub(super) const WAS_IN_FROM_POD: u8 = 32;
}

impl Scene {
    /// Reads an input: a byte of choices, two of the GSO size, the frame.
    pub(crate) fn read(input: &[u8]) -> Option<Self> {
        let (&[choices, gso_high, gso_low], frame) = input.split_first_chunk()?;
        let chosen = |bit| choices & bit != 0;
        let mut packet = Buffer::new(frame.to_vec(), OWN.ifindex);
        packet.gso_size = u32::from(u16::from_be_bytes([gso_high, gso_low]));
        packet.has_vlan_tag = chosen(choice::VLAN_TAG);
        let known = match (chosen(choice::KNOWN), chosen(choice::VIA_STACK)) {
            (false, _) => None,
            (true, true) => Some(flow_verdict::VIA_STACK),
            (true, false) => Some(flow_verdict::DIRECT),
        };
        let flags = if chosen(choice::ANSWER_ANY) { pod_flags::ANSWER_ANY } else { 0 };
        let was_in_from_pod = chosen(choice::WAS_IN_FROM_POD);
        Some(Self { packet, maps: Maps::new(flags, known), was_in_from_pod })
    }
}

/// The maps, which remember what is written to them.
#[derive(Clone)]
pub(crate) struct Maps {
    own: PodInfo,
    other: PodInfo,
    /// What is known of every flow to begin with.
    pub(crate) known: Option<u8>,
    pub(crate) written_v4: RefCell<Vec<(FlowKeyV4, u8)>>,
    pub(crate) written_v6: RefCell<Vec<(FlowKeyV6, u8)>>,
    /// Which way [`FAR_V4`] and [`FAR_V6`] are reached.
    pub(crate) remote: Option<Remote>,
    pub(crate) overlay: Option<Overlay>,
}

impl Maps {
    fn new(flags: u32, known: Option<u8>) -> Self {
        let own = PodInfo {
            ifindex: OWN.ifindex,
            mtu: 1500,
            flags,
            pod_mac: OWN.mac,
            host_mac: HOST_VETH_MAC,
        };
        let other = PodInfo {
            ifindex: OTHER.ifindex,
            mtu: OTHER_MTU,
            flags: 0,
            pod_mac: OTHER.mac,
            host_mac: OTHER_HOST_MAC,
        };
        Self {
            own,
            other,
            known,
            written_v4: RefCell::default(),
            written_v6: RefCell::default(),
            remote: None,
            overlay: None,
        }
    }

    pub(crate) fn own_flags(&self) -> u32 {
        self.own.flags
    }

    pub(crate) fn answers_any(&self) -> bool {
        self.own.flags & pod_flags::ANSWER_ANY != 0
    }

    fn pod_of<A: PartialEq>(&self, address: &A, own: &[A], other: &[A]) -> Option<&PodInfo> {
        if own.contains(address) {
            Some(&self.own)
        } else {
            other.contains(address).then_some(&self.other)
        }
    }
}

impl Tables<Ipv4> for Maps {
    fn pod(&self, address: &[u8; 4]) -> Option<&PodInfo> {
        self.pod_of(address, &OWN.v4, &OTHER.v4)
    }

    fn flow(&self, key: &FlowKeyV4) -> Option<u8> {
        latest(&self.written_v4.borrow(), key).or(self.known)
    }

    fn set_flow(&self, key: &FlowKeyV4, verdict: u8) -> Option<()> {
        self.written_v4.borrow_mut().push((*key, verdict));
        Some(())
    }

    fn remote(&self, address: &[u8; 4]) -> Option<&Remote> {
        self.remote.as_ref().filter(|_| address[..3] == FAR_V4)
    }

    fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }
}

impl Tables<Ipv6> for Maps {
    fn pod(&self, address: &[u8; 16]) -> Option<&PodInfo> {
        self.pod_of(address, &OWN.v6, &OTHER.v6)
    }

    fn flow(&self, key: &FlowKeyV6) -> Option<u8> {
        latest(&self.written_v6.borrow(), key).or(self.known)
    }

    fn set_flow(&self, key: &FlowKeyV6, verdict: u8) -> Option<()> {
        self.written_v6.borrow_mut().push((*key, verdict));
        Some(())
    }

    fn remote(&self, address: &[u8; 16]) -> Option<&Remote> {
        self.remote.as_ref().filter(|_| address[..15] == FAR_V6)
    }

    fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }
}

fn latest<K: PartialEq>(written: &[(K, u8)], key: &K) -> Option<u8> {
    written.iter().rev().find(|(other, _)| other == key).map(|(_, verdict)| *verdict)
}
