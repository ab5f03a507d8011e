//! What the unit tests put in the kernel's place: a packet in a buffer, and maps on the heap.

use std::{cell::RefCell, collections::HashMap};

use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use margay_abi::{FlowKeyV4, FlowKeyV6, PodInfo, flow_verdict};

use crate::{
    ip::{Ipv4, Ipv6},
    maps::Tables,
    packet::Packet,
};

/// TC action of a redirect, which the helpers return.
pub(crate) const TC_ACT_REDIRECT: i32 = 7;

/// Two pods of one node.
pub(crate) const A: End =
    End { ifindex: 5, mac: [2, 0, 0, 0, 0, 5], v4: [10, 244, 0, 5], v6: v6(5) };
pub(crate) const B: End =
    End { ifindex: 6, mac: [2, 0, 0, 0, 0, 6], v4: [10, 244, 0, 6], v6: v6(6) };
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
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A packet of pod [`A`].
#[derive(Clone)]
pub(crate) struct TestPacket {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ifindex: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) gso_size: u32,
    pub(crate) has_vlan_tag: bool,
    pub(crate) flow_hash: u32,
}

impl TestPacket {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let ifindex = A.ifindex;
        Self {
            bytes,
            ifindex,
            ingress_ifindex: ifindex,
            gso_size: 0,
            has_vlan_tag: false,
            flow_hash: 0,
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

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
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

    fn redirect_peer(&self, _ifindex: u32) -> i32 {
        TC_ACT_REDIRECT
    }

    fn redirect_back(&self) -> i32 {
        TC_ACT_REDIRECT
    }
}

/// Tables that know the pods [`A`] and [`B`].
pub(crate) struct TestTables {
    pods_v4: HashMap<[u8; 4], PodInfo>,
    pods_v6: HashMap<[u8; 16], PodInfo>,
    pub(crate) flows_v4: RefCell<HashMap<FlowKeyV4, u8>>,
    pub(crate) flows_v6: RefCell<HashMap<FlowKeyV6, u8>>,
    /// What is known of every other flow.
    pub(crate) other_flows: Option<u8>,
}

impl TestTables {
    pub(crate) fn new() -> Self {
        Self::with_flags(0)
    }

    /// With a table in which every flow is direct that has no other verdict.
    pub(crate) fn all_direct() -> Self {
        Self { other_flows: Some(flow_verdict::DIRECT), ..Self::new() }
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

    fn set_flow(&self, key: &FlowKeyV4, verdict: u8) {
        self.flows_v4.borrow_mut().insert(*key, verdict);
    }
}

impl Tables<Ipv6> for TestTables {
    fn pod(&self, address: &[u8; 16]) -> Option<&PodInfo> {
        self.pods_v6.get(address)
    }

    fn flow(&self, key: &FlowKeyV6) -> Option<u8> {
        self.flows_v6.borrow().get(key).copied().or(self.other_flows)
    }

    fn set_flow(&self, key: &FlowKeyV6, verdict: u8) {
        self.flows_v6.borrow_mut().insert(*key, verdict);
    }
}
