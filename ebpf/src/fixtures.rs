//! What the unit tests put in the kernel's place: a packet in a buffer, and maps on the heap.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use margay_abi::{
    FlowKeyV4, FlowKeyV6, Overlay, PodInfo, Remote, event::Note, flow_verdict, remote_mode,
};

use crate::{
    ip::{Ipv4, Ipv6},
    maps::Tables,
    packet::{Hop, Packet, WayOut},
};

/// TC action of a redirect, which the helpers return.
pub(crate) const TC_ACT_REDIRECT: i32 = 7;

/// Two pods of one node.
pub(crate) const A: End =
    End { ifindex: 5, mac: [2, 0, 0, 0, 0, 5], v4: [10, 244, 0, 5], v6: v6(5) };
pub(crate) const B: End =
    End { ifindex: 6, mac: [2, 0, 0, 0, 0, 6], v4: [10, 244, 0, 6], v6: v6(6) };
/// A pod of another node, in whose prefixes it is.
pub(crate) const FAR: End = End { ifindex: 0, mac: [0; 6], v4: [10, 244, 9, 7], v6: v6_of(9, 7) };
pub(crate) const NODE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 0, 9];
pub(crate) const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 9, 0];
/// Less than a pod's.
pub(crate) const NODE_MTU: u32 = 1450;
pub(crate) const OVERLAY: Overlay = Overlay {
    ifindex_v4: 9,
    ifindex_v6: 8,
    vni: 4096,
    port: 4789_u16.to_be_bytes(),
    mac: [2, 0, 0, 0, 0, 9],
};
/// Of the network between the nodes, which has room for the overlay's headers.
pub(crate) const UNDERLAY_MTU: u32 = NODE_MTU + 50;
/// This node's address there.
pub(crate) const OWN_NODE: [u8; 4] = [192, 168, 0, 8];
/// What the kernel says of every packet, and of none.
pub(crate) const HASH: u32 = 0x4000_0000;
pub(crate) const IDENTIFICATION: u16 = 0xabcd;
/// An address that is nobody's on this node.
pub(crate) const ELSEWHERE_V4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const ELSEWHERE_V6: [u8; 16] = v6(0x99);
pub(crate) const HOST_MAC: [u8; 6] = margay_abi::HOST_VETH_MAC;
pub(crate) const MTU: u32 = 1500;

pub(crate) struct End {
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u8; 16],
}

const fn v6(last: u8) -> [u8; 16] {
    v6_of(0, last)
}

const fn v6_of(node: u8, last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, node, last]
}

/// A packet of pod [`A`].
#[derive(Clone)]
pub(crate) struct TestPacket {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ifindex: u32,
    pub(crate) gso_size: u32,
    pub(crate) has_vlan_tag: bool,
    pub(crate) flow_hash: u32,
    pub(crate) is_for_another_host: bool,
    pub(crate) is_sent: bool,
    /// The interface that the host's routes send it to.
    pub(crate) next_hop: Option<u32>,
    /// The interface that they send what this node encapsulates to.
    pub(crate) way_out: Option<u32>,
    /// Whether somebody wants to know what becomes of flows.
    pub(crate) is_listened_to: bool,
    /// Whether it is in a tunnel already.
    pub(crate) is_encapsulated: bool,
    /// The interface that it is redirected to.
    pub(crate) redirected: Cell<Option<u32>>,
    /// What became of its flow.
    pub(crate) noted: Cell<Note>,
}

impl TestPacket {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let ifindex = A.ifindex;
        Self {
            bytes,
            ifindex,
            gso_size: 0,
            has_vlan_tag: false,
            flow_hash: 0,
            is_for_another_host: false,
            is_sent: false,
            next_hop: None,
            way_out: None,
            is_encapsulated: false,
            is_listened_to: false,
            redirected: Cell::new(None),
            noted: Cell::default(),
        }
    }
}

impl Packet for TestPacket {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn has_vlan_tag(&self) -> bool {
        self.has_vlan_tag
    }

    fn flow_hash(&self) -> u32 {
        self.flow_hash
    }

    fn set_flow_hash(&mut self, hash: u32) {
        self.flow_hash = hash;
    }

    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        self.bytes.get(offset..offset + size_of::<T>()).map(pod_read_unaligned)
    }

    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.bytes.get_mut(offset..offset + size_of::<T>())?;
        place.copy_from_slice(bytes_of(&value));
        Some(())
    }

    fn overwrite<T: Pod>(&mut self, frame: &T) -> Option<()> {
        self.write(0, *frame)
    }

    fn adjust_checksum(&mut self, _difference: [u8; 2]) {}

    fn adjust_transport_checksum(&mut self, _: usize, _: [u8; 2], _: [u8; 2]) {}

    fn note_verdict(&self, was: u8, is: u8) {
        self.noted.set(Note { was, is, ..Note::default() });
    }

    fn is_awaited(&self) -> bool {
        self.is_listened_to && self.noted.get().is != 0
    }

    fn is_for_this_host(&self) -> bool {
        !self.is_for_another_host
    }

    fn redirect_by_route<T: Pod>(&self, _src: &T, _dst: &T, _longest: u32) -> Option<()> {
        self.redirected.set(Some(self.next_hop?));
        Some(())
    }

    fn computed_hash(&self) -> u32 {
        HASH
    }

    fn way_from_here(&self, _dst: &[u8; 4], _ports: [[u8; 2]; 2], longest: u32) -> Option<WayOut> {
        let ifindex = self.way_out.filter(|_| longest <= UNDERLAY_MTU)?;
        Some(WayOut { src: OWN_NODE, hop: Hop { ifindex, family: 2, address: [0; 4] } })
    }

    fn make_room_for_vxlan(&mut self, bytes: usize) -> Option<()> {
        if self.is_encapsulated {
            return None;
        }
        self.bytes.splice(14..14, std::iter::repeat_n(0, bytes));
        Some(())
    }

    fn redirect_by(&self, hop: &Hop) {
        self.redirected.set(Some(hop.ifindex));
    }

    fn random(&self) -> u16 {
        IDENTIFICATION
    }

    fn mark_as_sent(&mut self) {
        self.is_sent = true;
    }

    fn is_sent(&self) -> bool {
        self.is_sent
    }

    fn redirect(&self, ifindex: u32) {
        self.redirected.set(Some(ifindex));
    }

    fn redirect_peer(&self, _ifindex: u32) -> i32 {
        TC_ACT_REDIRECT
    }

    fn redirect_back(&self) -> i32 {
        TC_ACT_REDIRECT
    }
}

/// Tables that know the pods [`A`] and [`B`].
pub(crate) struct TestTables {
    pub(crate) pods_v4: HashMap<[u8; 4], PodInfo>,
    pub(crate) pods_v6: HashMap<[u8; 16], PodInfo>,
    pub(crate) flows_v4: RefCell<HashMap<FlowKeyV4, u8>>,
    pub(crate) flows_v6: RefCell<HashMap<FlowKeyV6, u8>>,
    /// What is known of every other flow.
    pub(crate) other_flows: Option<u8>,
    /// Whether every new entry is refused.
    pub(crate) remembers_nothing: bool,
    /// Which way [`FAR`] is reached.
    pub(crate) remote: Option<Remote>,
    pub(crate) overlay: Option<Overlay>,
}

impl TestTables {
    pub(crate) fn new() -> Self {
        Self::with_flags(0)
    }

    /// With a table in which every flow is direct that has no other verdict.
    pub(crate) fn all_direct() -> Self {
        Self { other_flows: Some(flow_verdict::DIRECT), ..Self::new() }
    }

    /// On a node that reaches [`FAR`] in one of the ways of [`remote_mode`].
    pub(crate) fn with_remote(mode: u8) -> Self {
        let remote = Remote { node: NODE, mtu: NODE_MTU, mac: NODE_MAC, mode, reserved: 0 };
        let overlay = (mode == remote_mode::VXLAN).then_some(OVERLAY);
        Self { remote: Some(remote), overlay, ..Self::new() }
    }

    /// With these [`margay_abi::pod_flags`] for both pods.
    pub(crate) fn with_flags(flags: u32) -> Self {
        let pod = |end: &End| PodInfo {
            ifindex: end.ifindex,
            mtu: MTU,
            flags,
            pod_mac: end.mac,
            host_mac: HOST_MAC,
        };
        Self {
            pods_v4: HashMap::from([A, B].map(|end| (end.v4, pod(&end)))),
            pods_v6: HashMap::from([A, B].map(|end| (end.v6, pod(&end)))),
            flows_v4: RefCell::default(),
            flows_v6: RefCell::default(),
            other_flows: None,
            remembers_nothing: false,
            remote: None,
            overlay: None,
        }
    }
}

impl Tables<Ipv4> for TestTables {
    fn pod(&self, address: &[u8; 4]) -> Option<&PodInfo> {
        self.pods_v4.get(address)
    }

    fn flow(&self, key: &FlowKeyV4) -> Option<u8> {
        self.flows_v4.borrow().get(key).copied().or(self.other_flows)
    }

    fn set_flow(&self, key: &FlowKeyV4, verdict: u8) -> Option<()> {
        if self.remembers_nothing {
            return None;
        }
        self.flows_v4.borrow_mut().insert(*key, verdict);
        Some(())
    }

    fn remote(&self, address: &[u8; 4]) -> Option<&Remote> {
        self.remote.as_ref().filter(|_| address[..3] == FAR.v4[..3])
    }

    fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }
}

impl Tables<Ipv6> for TestTables {
    fn pod(&self, address: &[u8; 16]) -> Option<&PodInfo> {
        self.pods_v6.get(address)
    }

    fn flow(&self, key: &FlowKeyV6) -> Option<u8> {
        self.flows_v6.borrow().get(key).copied().or(self.other_flows)
    }

    fn set_flow(&self, key: &FlowKeyV6, verdict: u8) -> Option<()> {
        if self.remembers_nothing {
            return None;
        }
        self.flows_v6.borrow_mut().insert(*key, verdict);
        Some(())
    }

    fn remote(&self, address: &[u8; 16]) -> Option<&Remote> {
        self.remote.as_ref().filter(|_| address[..15] == FAR.v6[..15])
    }

    fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }
}
