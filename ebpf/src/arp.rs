//! ARP from a pod: the request for the gateway is answered in place of an interface that has its
//! address.
//!
//! Invariant: an answer only ever goes to the pod that asked, and never claims an address that the
//! pod itself may be about to take (probes and gratuitous requests stay unanswered, RFC 5227).

use bytemuck::{Pod, Zeroable};
use margay_abi::{GATEWAY_V4, pod_flags};

use crate::{
    ethernet::{Ethernet, ethertype},
    from_pod::verified_sender,
    ip::Ipv4,
    maps::Tables,
    packet::Packet,
    verdict::{Answered, DropReason, StackReason, Verdict},
};

const ETHERNET: [u8; 2] = [0, 1];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// A whole ARP frame for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct ArpFrame {
    pub(crate) ethernet: Ethernet,
    pub(crate) hardware_type: [u8; 2],
    pub(crate) protocol_type: [u8; 2],
    pub(crate) hardware_len: u8,
    pub(crate) protocol_len: u8,
    pub(crate) operation: [u8; 2],
    pub(crate) sender_mac: [u8; 6],
    pub(crate) sender: [u8; 4],
    pub(crate) target_mac: [u8; 6],
    pub(crate) target: [u8; 4],
}

/// Answers, drops or passes on an ARP frame of a pod.
#[inline(never)]
pub(crate) fn receive(
    packet: &mut impl Packet,
    tables: &impl Tables<Ipv4>,
) -> Result<Verdict, DropReason> {
    let mut frame: ArpFrame = packet.read(0).ok_or(DropReason::Malformed)?;
    if !frame.is_ipv4_over_ethernet() {
        return Err(DropReason::Malformed);
    }
    if frame.sender == [0; 4] {
        return Err(DropReason::ArpIgnored);
    }
    let sender = verified_sender(packet, &frame.ethernet, tables.pod(&frame.sender))?;
    if frame.sender_mac != sender.pod_mac {
        return Err(DropReason::SpoofedSource);
    }
    if frame.operation != REQUEST || packet.has_vlan_tag() {
        return Ok(Verdict::Stack(StackReason::Control));
    }
    let is_asked = frame.target == GATEWAY_V4 || sender.flags & pod_flags::ANSWER_ANY != 0;
    if frame.target == frame.sender || !is_asked {
        return Err(DropReason::ArpIgnored);
    }
    frame.become_reply(sender.host_mac);
    packet.overwrite(&frame).ok_or(DropReason::Malformed)?;
    Ok(Verdict::Answer(Answered::Arp))
}

impl ArpFrame {
    #[inline(always)]
    fn is_ipv4_over_ethernet(&self) -> bool {
        self.hardware_type == ETHERNET
            && self.protocol_type == ethertype::IPV4
            && self.hardware_len == 6
            && self.protocol_len == 4
    }

    /// Turns this request into its reply, which says that the target is at `mac`.
    #[inline(always)]
    fn become_reply(&mut self, mac: [u8; 6]) {
        self.ethernet.dst = self.ethernet.src;
        self.ethernet.src = mac;
        self.operation = REPLY;
        let asked = self.target;
        self.target_mac = self.sender_mac;
        self.target = self.sender;
        self.sender_mac = mac;
        self.sender = asked;
    }
}
