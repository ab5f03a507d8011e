//! `to_pod`, the TC egress hook of the host veth: what the host's stack sends to the pod.
//!
//! Its one task is to learn: a flow between pods that the stack handles may be under NAT there, so
//! both of its directions have to stay with the stack, unless the packet itself shows that there is
//! no NAT. Invariant: it passes every packet unchanged.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use bytemuck::{Pod, Zeroable};
use margay_abi::{
    Counter,
    event::{self, Note},
    flow_verdict,
};

use crate::{
    ethernet::{Ethernet, ethertype},
    flow_hash,
    ip::{self, Header, Ipv4, Ipv6, Payload, protocol},
    maps::{self, KernelMaps, Tables},
    packet::{self, Packet, Skb},
    report,
    transport::{self, Role},
};

#[classifier]
pub(crate) fn to_pod(context: TcContext) -> i32 {
    let packet = Skb::new(&context);
    packet.set_note(Note::default());
    learn(&packet, &KernelMaps, Hook::ToPod);
    maps::count(Counter::ToPod as u32, packet.len());
    report::end(&context, event::Hook::ToPod, TC_ACT_UNSPEC, Counter::ToPod as u32)
}

/// Where the stack's packets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// On their way into a pod of this node.
    ToPod,
    /// On their way out of this node, beside those that `from_pod` sends.
    ToNode,
}

/// Remembers what the stack's handling says of the packet's flow, if it is between pods. `None` if
/// there is nothing to learn.
#[inline(always)]
pub(crate) fn learn(
    packet: &impl Packet,
    tables: &(impl Tables<Ipv4> + Tables<Ipv6>),
    hook: Hook,
) -> Option<()> {
    if packet.has_vlan_tag() || (hook == Hook::ToNode && packet.is_sent()) {
        return None;
    }
    let ethernet: Ethernet = packet.read(0)?;
    match ethernet.ethertype {
        ethertype::IPV4 => learn_ipv4(packet, tables, hook),
        ethertype::IPV6 => learn_ipv6(packet, tables, hook),
        _ => None,
    }
}

#[inline(always)]
fn learn_ipv4(packet: &impl Packet, tables: &impl Tables<Ipv4>, hook: Hook) -> Option<()> {
    let (ip, payload) = ip::read::<Ipv4>(packet).ok()?;
    is_of_a_pod(&ip, tables, hook).then_some(())?;
    if ip.is_later_fragment() {
        return None;
    }
    learn_flow(packet, &ip, payload, tables, hook)
}

#[inline(always)]
fn learn_ipv6(packet: &impl Packet, tables: &impl Tables<Ipv6>, hook: Hook) -> Option<()> {
    let (ip, payload) = ip::read::<Ipv6>(packet).ok()?;
    is_of_a_pod(&ip, tables, hook).then_some(())?;
    learn_flow(packet, &ip, behind_extensions(packet, payload)?, tables, hook)
}

/// Whether the sender is a pod whose packets come by this hook.
#[inline(always)]
fn is_of_a_pod<H: Header>(ip: &H, tables: &impl Tables<H>, hook: Hook) -> bool {
    let src = ip.src();
    tables.pod(&src).is_some() || (hook == Hook::ToPod && tables.remote(&src).is_some())
}

/// What a fragment header has before the part of the payload that it carries (RFC 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    /// Thirteen bits of offset, two reserved, one "more fragments".
    offset: [u8; 2],
    identification: [u8; 4],
}

/// Extension headers that are looked behind. A packet has one of each kind as a rule (RFC 8200, 4.1).
const MAX_EXTENSIONS: usize = 4;

/// The payload behind the extension headers. `None` for all fragments but the first.
#[inline(always)]
pub(crate) fn behind_extensions(packet: &impl Packet, mut payload: Payload) -> Option<Payload> {
    for _ in 0..MAX_EXTENSIONS {
        let (next_header, len) = match payload.protocol {
            protocol::FRAGMENT => {
                let fragment: FragmentHeader = packet.read(payload.offset)?;
                if u16::from_be_bytes(fragment.offset) >> 3 != 0 {
                    return None;
                }
                (fragment.next_header, size_of::<FragmentHeader>())
            }
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                let [next_header, more_units]: [u8; 2] = packet.read(payload.offset)?;
                (next_header, (usize::from(more_units) + 1) * 8)
            }
            _ => break,
        };
        payload = Payload {
            protocol: next_header,
            offset: packet::forgotten(payload.offset + len),
            len: payload.len.checked_sub(len)?,
        };
    }
    Some(payload)
}

/// Learns from a packet whose payload begins with its transport header.
///
/// A function of its own for its stack frame: keys are large, and 512 bytes is the limit.
#[inline(never)]
pub(crate) fn learn_flow<H: Header>(
    packet: &impl Packet,
    ip: &H,
    payload: Payload,
    tables: &impl Tables<H>,
    hook: Hook,
) -> Option<()> {
    let transport = transport::read(packet, ip, payload).ok()?;
    if matches!(transport.role, Role::Error | Role::None) {
        return None;
    }
    if hook == Hook::ToNode {
        tables.remote(&ip.dst())?;
    }
    // Decided here, on the paths that can have a proof: to the verifier, which follows every path, a
    // hash of none would make each step of the hash, and each byte of the key, a difference between
    // paths that are alike otherwise.
    let is_unchanged =
        transport.role == Role::Any && packet.flow_hash() == flow_hash::of(&transport.flow);
    remember(packet, &transport.flow.key, is_unchanged, tables);
    Some(())
}

/// Remembers the packet's verdict on its flow. A flow that is known already costs a look-up, which also
/// keeps its entry from being the least recently used.
///
/// The verdict is "direct" if the packet shows that it has the addresses and ports that it had in
/// `from_pod` (`is_unchanged`), and "via stack" otherwise: under NAT, or begun where no such proof is
/// asked for.
/// A flow that the stack has keeps "via stack", since another connection of its tuple may be alive
/// under NAT. A direct flow of which the stack sends a packet without the proof becomes the stack's.
#[inline(always)]
fn remember<H: Header>(
    packet: &impl Packet,
    key: &H::Key,
    is_unchanged: bool,
    tables: &impl Tables<H>,
) {
    // A number at once: the verifier refuses to see the payload of a `None` spilled.
    let known = tables.flow(key).unwrap_or(0);
    let verdict = if is_unchanged && known != flow_verdict::VIA_STACK {
        flow_verdict::DIRECT
    } else {
        flow_verdict::VIA_STACK
    };
    if known != verdict && tables.set_flow(key, verdict).is_some() {
        packet.note_verdict(known, verdict);
    }
}
