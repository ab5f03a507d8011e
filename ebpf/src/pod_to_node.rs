//! `pod_to_node`, which takes over from `from_pod` on a node among others: what a pod sends that is not
//! delivered on this node.
//!
//! `from_pod` calls it where it would leave a packet to the stack, and goes on by itself where there is
//! no such program. So a node without others neither loads nor runs any of this. It trusts `from_pod`,
//! which may be of another build, with the source address, and parses the rest anew. Invariant: nothing
//! is sent past the stack that the stack may have under NAT, and nothing that is for the overlay's port
//! passes.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use margay_abi::{Counter, Overlay, PodToNode, Remote, event::Hook, remote_mode};

use crate::{
    encapsulated,
    ethernet::{self, Ethernet, ethertype},
    from_pod::{admit, rewrite},
    ip::{self, Header, Ipv4, Ipv6},
    maps::{self, KernelMaps, Tables},
    packet::{Packet, Skb},
    report,
    verdict::{DropReason, FROM_HERE, StackReason, Verdict, conclude},
    vxlan,
};

/// Leaves to the program `pod_to_node` what `from_pod` has found to be the stack's. Returns if there is
/// no such program.
#[inline(always)]
pub(crate) fn take_over(context: &TcContext, verdict: Verdict) {
    let (reason, sender_flags) = match verdict {
        Verdict::Stack(reason) => (reason, 0),
        Verdict::Elsewhere { flags } => (StackReason::NotLocal, flags),
        _ => return,
    };
    Skb::new(context).set_notes(PodToNode { reason: reason as u32, sender_flags });
    maps::continue_in_pod_to_node(context);
}

#[classifier]
pub(crate) fn pod_to_node(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    let bytes = packet.len();
    let notes = packet.notes();
    let outcome = handle(&mut packet, notes, &KernelMaps);
    let (action, counter) = match outcome {
        // As `from_pod` would have counted it.
        Ok(Verdict::Elsewhere { .. }) => (TC_ACT_UNSPEC, notes.reason),
        outcome => conclude(&packet, outcome, FROM_HERE),
    };
    maps::count(counter, bytes);
    report::end(&context, Hook::PodToNode, action, counter)
}

/// [`Verdict::Elsewhere`] is what `from_pod` had decided.
#[inline(always)]
pub(crate) fn handle(
    packet: &mut impl Packet,
    notes: PodToNode,
    tables: &(impl Tables<Ipv4> + Tables<Ipv6>),
) -> Result<Verdict, DropReason> {
    let ethernet: Ethernet = packet.read(0).ok_or(DropReason::Malformed)?;
    match ethernet.ethertype {
        ethertype::IPV4 => match from_ipv4(packet, notes, tables)? {
            Decision::Final(verdict) => Ok(verdict),
            Decision::Overlay { longest } => through_overlay::<Ipv4>(packet, longest, tables),
        },
        ethertype::IPV6 => match from_ipv6(packet, notes, tables)? {
            Decision::Final(verdict) => Ok(verdict),
            Decision::Overlay { longest } => through_overlay::<Ipv6>(packet, longest, tables),
        },
        _ => Ok(UNCHANGED),
    }
}

/// What is found out about a packet before it is changed. The stack has no room for the frames of both.
enum Decision {
    Final(Verdict),
    /// It goes through the overlay; the longest packet that it becomes, from its IP header on.
    Overlay {
        longest: u32,
    },
}

const _: () = assert!(size_of::<Result<Decision, DropReason>>() <= size_of::<u64>());

const UNCHANGED: Verdict = Verdict::Elsewhere { flags: 0 };

#[inline(never)]
fn from_ipv4(
    packet: &mut impl Packet,
    notes: PodToNode,
    tables: &impl Tables<Ipv4>,
) -> Result<Decision, DropReason> {
    let (ip, payload) = ip::read::<Ipv4>(packet)?;
    if encapsulated::is_ipv4(packet, &ip, payload, tables) {
        return Err(DropReason::Encapsulated);
    }
    forward(packet, &ip, payload.len, notes, tables)
}

#[inline(never)]
fn from_ipv6(
    packet: &mut impl Packet,
    notes: PodToNode,
    tables: &impl Tables<Ipv6>,
) -> Result<Decision, DropReason> {
    let (ip, payload) = ip::read::<Ipv6>(packet)?;
    if encapsulated::is_ipv6(packet, payload, tables) {
        return Err(DropReason::Encapsulated);
    }
    forward(packet, &ip, payload.len, notes, tables)
}

/// The way of a packet to a pod of another node.
#[inline(always)]
fn forward<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    payload_len: usize,
    notes: PodToNode,
    tables: &impl Tables<H>,
) -> Result<Decision, DropReason> {
    const LEFT: Result<Decision, DropReason> = Ok(Decision::Final(UNCHANGED));
    // `from_pod` says this of nothing but plain headers, to the host veth's MAC, without a VLAN tag.
    if notes.reason != Counter::StackNotLocal as u32 {
        return LEFT;
    }
    let Some(remote) = tables.remote(&ip.dst()) else { return LEFT };
    let longest = match admit(packet, ip, payload_len, notes.sender_flags, remote.mtu, tables) {
        Ok(longest) => longest,
        Err(outcome) => return outcome.map(Decision::Final),
    };
    match remote.mode {
        remote_mode::VXLAN => Ok(Decision::Overlay { longest }),
        remote_mode::PLAIN => by_route(packet, ip, longest).map(Decision::Final),
        _ => LEFT,
    }
}

#[inline(never)]
fn through_overlay<H: Header>(
    packet: &mut impl Packet,
    longest: u32,
    tables: &impl Tables<H>,
) -> Result<Verdict, DropReason> {
    let ip: H = packet.read(ethernet::HEADER_LEN).ok_or(DropReason::Malformed)?;
    let (Some(remote), Some(overlay)) = (tables.remote(&ip.dst()), tables.overlay()) else {
        return Ok(UNCHANGED);
    };
    // Who tells of a flow reads its packet behind this program, and nothing outside of it.
    if !packet.is_awaited() {
        let outcome = vxlan::send(packet, &ip, remote, overlay, longest);
        if outcome != Ok(UNCHANGED) {
            return outcome;
        }
    }
    through_device(packet, &ip, remote, overlay)
}

/// What a VXLAN device alone can encapsulate: all over IPv6 and all before Linux 6.7, what does not fit
/// the way with its outer headers, what the pod itself has encapsulated, and a packet that is to be told of.
#[inline(always)]
fn through_device<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    remote: &Remote,
    overlay: &Overlay,
) -> Result<Verdict, DropReason> {
    let device = overlay.towards(&remote.node);
    if device == 0 {
        return Ok(UNCHANGED);
    }
    rewrite(packet, ip, [remote.mac, overlay.mac]).ok_or(DropReason::Malformed)?;
    packet.mark_as_sent();
    packet.redirect(device);
    Ok(Verdict::Send(H::FAMILY))
}

/// The next hop is the host's routes to say, and its MAC address the kernel's to know and to ask for.
#[inline(always)]
fn by_route<H: Header>(
    packet: &mut impl Packet,
    ip: &H,
    longest: u32,
) -> Result<Verdict, DropReason> {
    if packet.redirect_by_route(&ip.src(), &ip.dst(), longest).is_none() {
        return Ok(UNCHANGED);
    }
    ip.decrement_hop_limit(packet, ethernet::HEADER_LEN).ok_or(DropReason::Malformed)?;
    packet.mark_as_sent();
    Ok(Verdict::Send(H::FAMILY))
}
