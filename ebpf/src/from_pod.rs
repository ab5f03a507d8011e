//! `from_pod`, the TC ingress hook of the host veth: what the pod sends.
//!
//! Reads, looks up, decides and rewrites; the outcome becomes a TC action and a counter at the end.
//! Invariant: nothing passes whose source address is not this pod's, as far as there is one, and
//! nothing is delivered without the stack that the stack may have under NAT.

use aya_ebpf::{macros::classifier, programs::TcContext};
use margay_abi::{
    PodInfo,
    event::{Hook, Note},
    flow_verdict, pod_flags,
};

use crate::{
    arp,
    ethernet::{self, Ethernet, ethertype},
    flow_hash,
    ip::{self, Header, Ipv4, Ipv6, Payload, is_link_local, is_multicast, protocol},
    maps::{self, KernelMaps, Tables},
    ndp,
    packet::{Packet, Skb},
    pod_to_node, report,
    transport::{self, Role, Transport},
    verdict::{DropReason, FROM_HERE, StackReason, Verdict, conclude},
};

#[classifier]
pub(crate) fn from_pod(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    packet.set_note(Note::default());
    let bytes = packet.len();
    let outcome = handle(&mut packet, &KernelMaps);
    if let Ok(verdict) = outcome {
        pod_to_node::take_over(&context, verdict);
    }
    let (action, counter) = conclude(&packet, outcome, FROM_HERE);
    maps::count(counter, bytes);
    report::end(&context, Hook::FromPod, action, counter)
}

#[inline(always)]
pub(crate) fn handle(
    packet: &mut impl Packet,
    tables: &(impl Tables<Ipv4> + Tables<Ipv6>),
) -> Result<Verdict, DropReason> {
    let ethernet: Ethernet = packet.read(0).ok_or(DropReason::Malformed)?;
    match ethernet.ethertype {
        ethertype::IPV4 => from_ipv4(packet, tables),
        ethertype::IPV6 => from_ipv6(packet, tables),
        ethertype::ARP => arp::receive(packet, tables),
        // The kernel has taken a first tag off already. The stack would take this one off too if
        // both are for VLAN 0, and believe whatever source address comes to light.
        ethertype::VLAN | ethertype::SERVICE_VLAN => Err(DropReason::SpoofedSource),
        _ => Ok(Verdict::Stack(StackReason::Unsupported)),
    }
}

#[inline(never)]
fn from_ipv4(packet: &mut impl Packet, tables: &impl Tables<Ipv4>) -> Result<Verdict, DropReason> {
    let received = Received::<Ipv4>::read(packet)?;
    let sender = tables.pod(&received.ip.src);
    let sender = verified_sender(packet, &received.ethernet, sender)?;
    forward(packet, &received, sender, tables)
}

#[inline(never)]
fn from_ipv6(packet: &mut impl Packet, tables: &impl Tables<Ipv6>) -> Result<Verdict, DropReason> {
    let received = Received::<Ipv6>::read(packet)?;
    let src = received.ip.src;
    if is_link_local(&src) || src == [0; 16] {
        return from_link_scope(packet, &received, tables);
    }
    let sender = verified_sender(packet, &received.ethernet, tables.pod(&src))?;
    if let Some(icmp_type) = icmpv6_type(packet, &received)?
        && ndp::is_link_control(icmp_type)
    {
        return Ok(ndp::receive(packet, Some(sender), tables));
    }
    forward(packet, &received, sender, tables)
}

/// The headers of an IP packet, whose lengths agree with the packet's. In an order and aligned so
/// that the IP header, of which most is read, is read by words.
#[repr(C, align(8))]
struct Received<H> {
    ip: H,
    ethernet: Ethernet,
    payload_len: usize,
}

impl<H: Header> Received<H> {
    #[inline(always)]
    fn read(packet: &impl Packet) -> Result<Self, DropReason> {
        let ethernet = packet.read(0).ok_or(DropReason::Malformed)?;
        let (ip, payload) = ip::read(packet)?;
        Ok(Self { ip, ethernet, payload_len: payload.len })
    }
}

/// A packet whose source address means something on this link only: it stays on the link.
#[inline(always)]
fn from_link_scope(
    packet: &mut impl Packet,
    received: &Received<Ipv6>,
    tables: &impl Tables<Ipv6>,
) -> Result<Verdict, DropReason> {
    let dst = received.ip.dst;
    if !is_multicast(&dst) && !is_link_local(&dst) {
        return Err(DropReason::SpoofedSource);
    }
    match icmpv6_type(packet, received)? {
        Some(icmp_type) if ndp::is_router_message(icmp_type) => {
            return Err(DropReason::RouterMessage);
        }
        Some(icmp_type) if ndp::is_link_control(icmp_type) => {
            return Ok(ndp::receive(packet, None, tables));
        }
        _ => {}
    }
    match received.ip.next_header {
        protocol::HOP_BY_HOP if is_listener_report(packet) => {
            Ok(Verdict::Stack(StackReason::Control))
        }
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
            Err(DropReason::RouterMessage)
        }
        _ if is_multicast(&dst) => Ok(Verdict::Stack(StackReason::Multicast)),
        _ => Ok(Verdict::Stack(StackReason::Control)),
    }
}

const PAYLOAD_V6: usize = ethernet::HEADER_LEN + size_of::<Ipv6>();

/// The ICMPv6 type, if it is ICMPv6.
#[inline(always)]
fn icmpv6_type(
    packet: &impl Packet,
    Received { ip, payload_len, .. }: &Received<Ipv6>,
) -> Result<Option<u8>, DropReason> {
    if ip.next_header != protocol::ICMPV6 {
        return Ok(None);
    }
    if *payload_len == 0 {
        return Err(DropReason::Malformed);
    }
    packet.read(PAYLOAD_V6).map(Some).ok_or(DropReason::Malformed)
}

/// Whether it is MLD, which travels behind a hop-by-hop header of eight bytes (RFC 3810, section 5).
#[inline(always)]
fn is_listener_report(packet: &impl Packet) -> bool {
    let start: Option<[u8; 9]> = packet.read(PAYLOAD_V6);
    start.is_some_and(|[next_header, units, .., icmp_type]| {
        next_header == protocol::ICMPV6 && units == 0 && ndp::is_listener_message(icmp_type)
    })
}

/// The pod that a source address belongs to, if it is the one behind this interface.
#[inline(always)]
pub(crate) fn verified_sender<'a>(
    packet: &impl Packet,
    ethernet: &Ethernet,
    owner: Option<&'a PodInfo>,
) -> Result<&'a PodInfo, DropReason> {
    owner
        .filter(|pod| pod.ifindex == packet.ifindex() && pod.pod_mac == ethernet.src)
        .ok_or(DropReason::SpoofedSource)
}

/// The way of a packet from `sender`, which is verified, to wherever it goes.
#[inline(never)]
fn forward<H: Header>(
    packet: &mut impl Packet,
    Received { ethernet, ip, payload_len }: &Received<H>,
    sender: &PodInfo,
    tables: &impl Tables<H>,
) -> Result<Verdict, DropReason> {
    if ethernet.is_group() || ip.is_to_group() {
        return Ok(Verdict::Stack(StackReason::Multicast));
    }
    if ethernet.dst != sender.host_mac || !ip.is_plain() || packet.has_vlan_tag() {
        return Ok(Verdict::Stack(StackReason::Unsupported));
    }
    match tables.pod(&ip.dst()) {
        Some(pod) if pod.ifindex != packet.ifindex() => {
            deliver(packet, ip, *payload_len, sender.flags, pod, tables)
        }
        _ => Ok(Verdict::Elsewhere { flags: sender.flags }),
    }
}

/// The way of a packet with a plain header to a pod of this node. `sender_flags` are those of its
/// sender, if that is one as well.
#[inline(always)]
pub(crate) fn deliver<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    payload_len: usize,
    sender_flags: u32,
    receiver: &PodInfo,
    tables: &impl Tables<H>,
) -> Result<Verdict, DropReason> {
    let flags = sender_flags | receiver.flags;
    if let Err(refusal) = admit(packet, ip, payload_len, flags, receiver.mtu, tables) {
        return refusal;
    }
    match rewrite(packet, ip, [receiver.pod_mac, receiver.host_mac]) {
        Some(()) => Ok(Verdict::Deliver { ifindex: receiver.ifindex, family: H::FAMILY }),
        None => Err(DropReason::Malformed),
    }
}

/// Whether a packet with a plain header may go past the stack, by a way of this MTU, between pods with
/// these flags, as far as they are on this node; if not, what becomes of it. Returns the longest packet
/// that it becomes on a link, from its IP header on.
#[inline(always)]
pub(crate) fn admit<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    payload_len: usize,
    flags: u32,
    mtu: u32,
    tables: &impl Tables<H>,
) -> Result<u32, Result<Verdict, DropReason>> {
    let stack = |reason| Err(Ok(Verdict::Stack(reason)));
    let payload = Payload {
        protocol: ip.protocol(),
        // Of a plain header: a constant.
        offset: ethernet::HEADER_LEN + size_of::<H>(),
        len: payload_len,
    };
    let transport = transport::read(packet, ip, payload).map_err(Err)?;
    if transport.role == Role::None {
        return stack(StackReason::Unsupported);
    }
    // One of the two is enough, whichever way it is shaped: conntrack, which the stack takes the
    // packet through, must see both directions of a flow or none.
    if flags & pod_flags::SHAPED != 0 {
        return stack(StackReason::Flow);
    }
    let longest = longest_packet(packet, size_of::<H>() + transport.header_len);
    if ip.hop_limit() <= 1 || longest > mtu {
        return stack(StackReason::IcmpError);
    }
    if transport.role == Role::End && tables.flow(&transport.flow.key).is_none() {
        introduce_to_conntrack(packet, payload, &transport.flow.key, tables);
    }
    if !is_direct(packet, &transport, tables) {
        return stack(StackReason::Flow);
    }
    Ok(longest)
}

/// Makes the packet what a router would have made of it: with the MAC addresses of its next link,
/// destination first, and a hop less to go.
#[inline(always)]
pub(crate) fn rewrite<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    macs: [[u8; 6]; 2],
) -> Option<()> {
    packet.write(0, macs)?;
    ip.decrement_hop_limit(packet, ethernet::HEADER_LEN)
}

/// The longest packet that it becomes on a link, from its IP header on.
#[inline(always)]
fn longest_packet(packet: &impl Packet, headers_len: usize) -> u32 {
    match packet.gso_size() {
        0 => packet.len() - ethernet::HEADER_LEN as u32,
        segment => segment + headers_len as u32,
    }
}

/// Whether a packet bypasses the stack: its flow does, or begins with it.
///
/// What begins a flow is no answer, so NAT has nothing to undo about it; its answers follow it, by the
/// entry that it makes. Of a flow that the stack has it is the stack's as well: the connection before
/// it may be alive under NAT, and only conntrack can then find another source port for the new one.
///
/// Where any packet may be the first, one of an unknown flow may as well be an answer that NAT has
/// to be undone of. It goes to the stack with its [`flow_hash`], by which `to_pod` tells the two
/// apart. So a lost entry costs the way through the stack once. What follows a first packet so
/// closely that `to_pod` has not seen that yet goes the same way, and what comes just after may
/// overtake it; these protocols allow for that.
#[inline(always)]
fn is_direct<H: Header>(
    packet: &mut impl Packet,
    transport: &Transport<H::Key>,
    tables: &impl Tables<H>,
) -> bool {
    let Transport { role, flow, .. } = transport;
    match (role, tables.flow(&flow.key)) {
        (_, Some(verdict)) => verdict == flow_verdict::DIRECT,
        (Role::Beginning, None) => {
            // Were it not remembered, its answer would be the stack's, which knows of no question.
            let is_remembered = tables.set_flow(&flow.key, flow_verdict::DIRECT).is_some();
            if is_remembered {
                packet.note_verdict(0, flow_verdict::DIRECT);
            }
            is_remembered
        }
        (Role::Any, None) => {
            packet.set_flow_hash(flow_hash::of(flow));
            false
        }
        (_, None) => false,
    }
}

/// Leaves a flow whose table entry is lost to the stack, and with it this packet but for its FIN.
///
/// Conntrack takes up a connection that it has never seen with any packet of the middle, but holds a
/// FIN for invalid (`tcp_new`), and kube-proxy drops what is invalid, each time that it is repeated.
/// Without the FIN it is of the middle. The one that the sender repeats comes to a known connection.
#[inline(always)]
fn introduce_to_conntrack<H: Header>(
    packet: &mut impl Packet,
    payload: Payload,
    key: &H::Key,
    tables: &impl Tables<H>,
) {
    if transport::lose_fin(packet, payload.offset).is_some() {
        tables.set_flow(key, flow_verdict::VIA_STACK);
        packet.note_verdict(0, flow_verdict::VIA_STACK);
    }
}
