//! IPv6 neighbour discovery from a pod: the solicitation for the gateway is answered in place.
//!
//! Invariant: only the one form of solicitation that hosts send is answered, complete in one frame
//! with the sender's MAC address as its only option. Every other message goes to the stack, which
//! has the gateway's address too (it is the host veth's link-local address) and drops what is wrong.
//! What only a router may say is dropped before it gets here.

use bytemuck::{Pod, Zeroable, bytes_of};
use margay_abi::{GATEWAY_V6, HOST_VETH_MAC, PodInfo, pod_flags};

use crate::{
    checksum::checksum,
    ethernet::Ethernet,
    ip::{Ipv6, is_multicast, protocol},
    maps::Tables,
    packet::Packet,
    verdict::{Answered, StackReason, Verdict},
};

const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// Router, solicited, override.
const ADVERTISEMENT_FLAGS: [u8; 4] = [0xe0, 0, 0, 0];

/// A whole solicitation or advertisement with one link-layer address option (RFC 4861, 4.3 and 4.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct NeighbourFrame {
    pub(crate) ethernet: Ethernet,
    pub(crate) ip: Ipv6,
    pub(crate) message: NeighbourMessage,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct NeighbourMessage {
    pub(crate) icmp_type: u8,
    pub(crate) code: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) flags: [u8; 4],
    pub(crate) target: [u8; 16],
    pub(crate) option_type: u8,
    /// In units of eight bytes.
    pub(crate) option_len: u8,
    pub(crate) mac: [u8; 6],
}

const MESSAGE_LEN: [u8; 2] = (size_of::<NeighbourMessage>() as u16).to_be_bytes();

/// Whether an ICMPv6 type is of neighbour discovery (RFC 4861) or of multicast listener discovery
/// (RFC 2710, RFC 3810): traffic that never leaves its link.
#[inline(always)]
pub(crate) fn is_link_control(icmp_type: u8) -> bool {
    matches!(icmp_type, 130..=137 | 143)
}

/// Whether an ICMPv6 type is of multicast listener discovery.
#[inline(always)]
pub(crate) fn is_listener_message(icmp_type: u8) -> bool {
    matches!(icmp_type, 130..=132 | 143)
}

/// Whether an ICMPv6 type is a router's alone: the host would take routes from it (CVE-2020-10749).
#[inline(always)]
pub(crate) fn is_router_message(icmp_type: u8) -> bool {
    matches!(icmp_type, ROUTER_ADVERTISEMENT | REDIRECT)
}

/// Answers or passes on an ICMPv6 message for which [`is_link_control`] holds. `sender` is the pod
/// by its source address, which a link-local address does not tell.
#[inline(never)]
pub(crate) fn receive(
    packet: &mut impl Packet,
    sender: Option<&PodInfo>,
    tables: &impl Tables<Ipv6>,
) -> Verdict {
    answer(packet, sender, tables).unwrap_or(Verdict::Stack(StackReason::Control))
}

#[inline(always)]
fn answer(
    packet: &mut impl Packet,
    sender: Option<&PodInfo>,
    tables: &impl Tables<Ipv6>,
) -> Option<Verdict> {
    let mut frame: NeighbourFrame = packet.read(0)?;
    if packet.has_vlan_tag()
        || !frame.is_answerable()
        || !is_asked(&frame, packet.ifindex(), sender, tables)
    {
        return None;
    }
    let host_mac = sender.map_or(HOST_VETH_MAC, |pod| pod.host_mac);
    frame.become_advertisement(host_mac);
    packet.overwrite(&frame)?;
    Some(Verdict::Answer(Answered::Ndp))
}

/// Whether the target is one that this pod gets an answer for: the gateway, or with
/// [`pod_flags::ANSWER_ANY`] whatever is not an address of the pod itself.
#[inline(always)]
fn is_asked(
    frame: &NeighbourFrame,
    ifindex: u32,
    sender: Option<&PodInfo>,
    tables: &impl Tables<Ipv6>,
) -> bool {
    let target = frame.message.target;
    if target == GATEWAY_V6 {
        return true;
    }
    sender.is_some_and(|pod| pod.flags & pod_flags::ANSWER_ANY != 0)
        && !is_multicast(&target)
        && tables.pod(&target).is_none_or(|owner| owner.ifindex != ifindex)
}

impl NeighbourFrame {
    /// Whether it is a valid solicitation (RFC 4861, 7.1.1) of the one form that is answered. The
    /// checksum is not looked at: a wrong one harms its sender alone.
    #[inline(always)]
    fn is_answerable(&self) -> bool {
        self.ip.next_header == protocol::ICMPV6
            && self.ip.payload_len == MESSAGE_LEN
            && self.ip.hop_limit == 255
            && self.ip.src != [0; 16]
            && self.message.icmp_type == SOLICITATION
            && self.message.code == 0
            && self.message.option_type == SOURCE_MAC
            && self.message.option_len == 1
            && self.message.mac == self.ethernet.src
    }

    /// Turns this solicitation into its answer, which says that the target is at `mac`.
    #[inline(always)]
    fn become_advertisement(&mut self, mac: [u8; 6]) {
        self.ethernet.dst = self.ethernet.src;
        self.ethernet.src = mac;
        self.ip.dst = self.ip.src;
        self.ip.src = self.message.target;
        self.message.icmp_type = ADVERTISEMENT;
        self.message.flags = ADVERTISEMENT_FLAGS;
        self.message.option_type = TARGET_MAC;
        self.message.mac = mac;
        self.message.checksum = [0; 2];
        self.message.checksum = self.checksum();
    }

    /// The ICMPv6 checksum (RFC 8200, 8.1) over the pseudo-header and the message.
    #[inline(always)]
    fn checksum(&self) -> [u8; 2] {
        let [len_high, len_low] = MESSAGE_LEN;
        let pseudo_tail = [0, 0, len_high, len_low, 0, 0, 0, protocol::ICMPV6];
        checksum([&self.ip.src, &self.ip.dst, &pseudo_tail, bytes_of(&self.message)])
    }
}
