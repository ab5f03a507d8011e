//! `from_overlay` and `from_uplink`, the TC ingress hooks of the interfaces that lead to other nodes: what
//! comes from there to this node's pods.
//!
//! Invariant: they drop nothing. What is not for a pod of this node from a pod of another is the
//! stack's. So is what comes through the overlay by another address than its node's: a forger's, or one
//! that the node's own stack has chosen among several; to tell these apart is for the host's firewall.
//!
//! What is plain is taken from pods that are reached in VXLAN too: the way of a packet is that of its
//! receiver's pool, and may be another one back.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use margay_abi::event::{Hook, Note};

use crate::{
    ethernet::{Ethernet, ethertype},
    from_pod,
    ip::{self, Header, Ipv4, Ipv6},
    maps::{self, KernelMaps, Tables},
    packet::{Packet, Skb},
    report,
    to_pod::{self, learn_flow},
    verdict::{FROM_NODES, StackReason, Verdict, conclude},
};

#[classifier]
pub(crate) fn from_overlay(context: TcContext) -> i32 {
    run(&context, Origin::Overlay)
}

#[classifier]
pub(crate) fn from_uplink(context: TcContext) -> i32 {
    run(&context, Origin::Uplink)
}

#[inline(always)]
fn run(context: &TcContext, origin: Origin) -> i32 {
    let mut packet = Skb::new(context);
    packet.set_note(Note::default());
    let bytes = packet.len();
    let Some(verdict) = handle(&mut packet, origin, &KernelMaps) else {
        return TC_ACT_UNSPEC;
    };
    let (action, counter) = conclude(&packet, Ok(verdict), FROM_NODES);
    maps::count(counter, bytes);
    let hook = match origin {
        Origin::Overlay => Hook::FromOverlay,
        Origin::Uplink => Hook::FromUplink,
    };
    report::end(context, hook, action, counter)
}

/// By which interface a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Overlay,
    Uplink,
}

/// `None` for what is between others than two pods, and not counted: most of what an uplink sees.
#[inline(always)]
pub(crate) fn handle(
    packet: &mut impl Packet,
    origin: Origin,
    tables: &(impl Tables<Ipv4> + Tables<Ipv6>),
) -> Option<Verdict> {
    let ethernet: Ethernet = packet.read(0)?;
    match ethernet.ethertype {
        ethertype::IPV4 => {
            let verdict = receive::<Ipv4>(packet, origin, tables);
            learn_if_of_another::<Ipv4>(packet, verdict, tables);
            verdict
        }
        ethertype::IPV6 => {
            let verdict = receive::<Ipv6>(packet, origin, tables);
            learn_if_of_another::<Ipv6>(packet, verdict, tables);
            verdict
        }
        _ => None,
    }
}

/// Both ways: conntrack must see all of a flow or nothing.
#[inline(always)]
fn learn_if_of_another<H: Header>(
    packet: &impl Packet,
    verdict: Option<Verdict>,
    tables: &impl Tables<H>,
) {
    if verdict == Some(Verdict::Stack(StackReason::OtherNode)) {
        learn_again::<H>(packet, tables);
    }
}

/// Reads the packet once more: beside what [`receive`] has read, the stack has no room for the frame of
/// [`learn_flow`], with frames rounded up to 32 bytes as older kernels do.
#[inline(never)]
fn learn_again<H: Header>(packet: &impl Packet, tables: &impl Tables<H>) -> Option<()> {
    let (ip, payload) = ip::read::<H>(packet).ok()?;
    learn_flow(packet, &ip, payload, tables, to_pod::Hook::ToPod)
}

#[inline(never)]
fn receive<H: Header>(
    packet: &mut impl Packet,
    origin: Origin,
    tables: &impl Tables<H>,
) -> Option<Verdict> {
    let (ip, payload) = ip::read::<H>(packet).ok()?;
    let receiver = tables.pod(&ip.dst())?;
    let sender = tables.remote(&ip.src())?;
    if !packet.is_for_this_host() || packet.has_vlan_tag() || !ip.is_plain() {
        return Some(Verdict::Stack(StackReason::Unsupported));
    }
    if origin == Origin::Overlay && !packet.is_from_tunnel(&sender.node) {
        return Some(Verdict::Stack(StackReason::OtherNode));
    }
    let outcome = from_pod::deliver(packet, &ip, payload.len, 0, receiver, tables);
    Some(outcome.unwrap_or(Verdict::Stack(StackReason::Unsupported)))
}
