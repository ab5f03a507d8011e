//! `from_overlay` and `from_uplink`, the TC ingress hooks of the interfaces that lead to other nodes: what
//! comes from there to this node's pods.
//!
//! Invariant: they drop nothing. What is not for a pod of this node from a pod of another is the
//! stack's. Who may send VXLAN is for the host's firewall to say: a forged packet could bear a node's
//! address as well.
//!
//! What is plain is taken from pods that are reached in VXLAN too, and the other way round: the way of a
//! packet is that of its receiver's pool, and may be another one back.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use margay_abi::event::{Hook, Note};

use crate::{
    ethernet::{Ethernet, ethertype},
    from_pod,
    ip::{self, Header, Ipv4, Ipv6},
    maps::{self, KernelMaps, Tables},
    packet::{Packet, Skb},
    report,
    verdict::{FROM_NODES, StackReason, Verdict, conclude},
};

#[classifier]
pub(crate) fn from_overlay(context: TcContext) -> i32 {
    run(&context, Hook::FromOverlay)
}

#[classifier]
pub(crate) fn from_uplink(context: TcContext) -> i32 {
    run(&context, Hook::FromUplink)
}

#[inline(always)]
fn run(context: &TcContext, hook: Hook) -> i32 {
    let mut packet = Skb::new(context);
    packet.set_note(Note::default());
    let bytes = packet.len();
    let Some(verdict) = handle(&mut packet, &KernelMaps) else {
        return TC_ACT_UNSPEC;
    };
    let (action, counter) = conclude(&packet, Ok(verdict), FROM_NODES);
    maps::count(counter, bytes);
    report::end(context, hook, action, counter)
}

/// `None` for what is between others than two pods, and not counted: most of what an uplink sees.
#[inline(always)]
pub(crate) fn handle(
    packet: &mut impl Packet,
    tables: &(impl Tables<Ipv4> + Tables<Ipv6>),
) -> Option<Verdict> {
    let ethernet: Ethernet = packet.read(0)?;
    match ethernet.ethertype {
        ethertype::IPV4 => receive::<Ipv4>(packet, tables),
        ethertype::IPV6 => receive::<Ipv6>(packet, tables),
        _ => None,
    }
}

#[inline(never)]
fn receive<H: Header>(packet: &mut impl Packet, tables: &impl Tables<H>) -> Option<Verdict> {
    let (ip, payload) = ip::read::<H>(packet).ok()?;
    let receiver = tables.pod(&ip.dst())?;
    tables.remote(&ip.src())?;
    if !packet.is_for_this_host() || packet.has_vlan_tag() || !ip.is_plain() {
        return Some(Verdict::Stack(StackReason::Unsupported));
    }
    let outcome = from_pod::deliver(packet, &ip, payload.len, 0, receiver, tables);
    Some(outcome.unwrap_or(Verdict::Stack(StackReason::Unsupported)))
}
