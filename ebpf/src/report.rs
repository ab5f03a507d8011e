//! `report`, which tells whoever listens what the other programs have to tell: drops, and verdicts that
//! flows have got.
//!
//! The others carry nothing along for it. Where a flow gets a verdict they note that beside the packet, and
//! where a hook ends with such a note or a drop, and somebody listens, it ends in the reporters ([`end`]):
//! one for each who listens, loaded by them, with maps of their own, each going on in the next and the last
//! with the hook's own action. So a node where nobody listens has none of this loaded, and the hooks
//! have their stack to themselves: to write an event takes 200 bytes of it. Invariant: what becomes of the packet
//! stays as the hook has decided.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use aya_log_ebpf::info;
use bytemuck::{Zeroable as _, bytes_of};
use margay_abi::event::{Event, Hook, Interest, Note, event_has, tail_call};

use crate::{
    arp::ArpFrame,
    ethernet::{self, Ethernet, ethertype},
    ip::{self, Header, Ipv4, Ipv6, Payload, protocol},
    maps::{self, KernelMaps},
    packet::{Packet, Skb},
    to_pod::behind_extensions,
    transport,
};

/// Ends a hook, with its action and the counter of it. A hook begins with clearing the note.
#[inline(always)]
pub(crate) fn end(context: &TcContext, hook: Hook, action: i32, counter: u32) -> i32 {
    let packet = Skb::new(context);
    let note = packet.note();
    let dropped = if action == TC_ACT_SHOT { counter as u8 } else { 0 };
    if (dropped != 0 || note.is != 0) && maps::is_listened_to() {
        packet.set_note(Note { dropped, hook: hook as u8, ..note });
        packet.set_action(action);
        maps::continue_in_reporters(context, tail_call::REPORTERS.start);
    }
    action
}

#[classifier]
pub(crate) fn report(context: TcContext) -> i32 {
    let packet = Skb::new(&context);
    let (note, action, slot) = (packet.note(), packet.action(), packet.reporter());
    tell(&packet, note);
    maps::continue_in_reporters(&context, slot.saturating_add(1));
    action
}

/// Tells the event if somebody is there, wants to know and has not been told too much.
///
/// No function of its own: whoever loads the other programs leaves this one out, with all that it is made of.
#[inline(always)]
fn tell(packet: &Skb, note: Note) {
    let now_ns = maps::now_ns();
    if !maps::is_listened_to_at(now_ns) {
        return;
    }
    let Some(interest) = KernelMaps.interest() else { return };
    let mut event = Event { at_ns: now_ns, note, ..Event::zeroed() };
    describe(packet, &mut event);
    if is_wanted(&event, interest, &KernelMaps) && maps::has_quota(now_ns, interest.rate) {
        // One argument of any length: each further one takes the verifier a millisecond.
        info!(packet, "{:x}", bytes_of(&event));
    }
}

/// What one who listens wants to know.
pub(crate) trait Interested {
    fn interest(&self) -> Option<&Interest>;
    /// [`margay_abi::event::interest`] bits of an address.
    fn of_host(&self, address: &[u8; 16]) -> u32;
    /// The same of an interface.
    fn of_link(&self, ifindex: u32) -> u32;
}

#[inline(always)]
pub(crate) fn is_wanted(event: &Event, interest: &Interest, who: &impl Interested) -> bool {
    let Note { is, dropped, .. } = event.note;
    let is_drop = dropped != 0 && interest.drops >> (dropped & 31) & 1 != 0;
    let is_flow = is != 0 && interest.flows != 0;
    if !is_drop && !is_flow {
        return false;
    }
    if interest.bits == 0 {
        return true;
    }
    let mut bits = who.of_link(event.ifindex);
    if event.has & event_has::ADDRESSES != 0 {
        bits |= who.of_host(&event.src) | who.of_host(&event.dst);
    }
    bits & interest.bits == interest.bits
}

/// Reads the packet anew, as far as it can be read.
#[inline(always)]
pub(crate) fn describe(packet: &impl Packet, event: &mut Event) {
    event.ifindex = packet.ifindex();
    event.bytes = packet.len();
    let Some(ethernet) = packet.read::<Ethernet>(0) else { return };
    event.mac = ethernet.src;
    event.ethertype = ethernet.ethertype;
    match ethernet.ethertype {
        ethertype::IPV4 => describe_ipv4(packet, event),
        ethertype::IPV6 => describe_ipv6(packet, event),
        ethertype::ARP => {
            if let Some(arp) = packet.read::<ArpFrame>(0) {
                set_addresses(event, mapped(arp.sender), mapped(arp.target));
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn describe_ipv4(packet: &impl Packet, event: &mut Event) {
    let Some(ip) = packet.read::<Ipv4>(ethernet::HEADER_LEN) else { return };
    set_addresses(event, mapped(ip.src), mapped(ip.dst));
    set_protocol(event, ip.protocol);
    if let Ok((ip, payload)) = ip::read::<Ipv4>(packet)
        && !ip.is_later_fragment()
    {
        set_ports::<Ipv4>(packet, event, payload);
    }
}

#[inline(always)]
fn describe_ipv6(packet: &impl Packet, event: &mut Event) {
    let Some(ip) = packet.read::<Ipv6>(ethernet::HEADER_LEN) else { return };
    set_addresses(event, ip.src, ip.dst);
    set_protocol(event, ip.next_header);
    if let Ok((_, payload)) = ip::read::<Ipv6>(packet)
        && let Some(payload) = behind_extensions(packet, payload)
    {
        if !protocol::is_extension(payload.protocol) {
            set_protocol(event, payload.protocol);
        }
        set_ports::<Ipv6>(packet, event, payload);
    }
}

#[inline(always)]
fn set_addresses(event: &mut Event, src: [u8; 16], dst: [u8; 16]) {
    event.src = src;
    event.dst = dst;
    event.has |= event_has::ADDRESSES;
}

#[inline(always)]
fn set_protocol(event: &mut Event, protocol: u8) {
    event.protocol = protocol;
    event.has |= event_has::PROTOCOL;
}

#[inline(always)]
fn set_ports<H: Header>(packet: &impl Packet, event: &mut Event, payload: Payload) {
    if let Some((src_port, dst_port)) = transport::own_ports::<H>(packet, payload) {
        event.src_port = src_port;
        event.dst_port = dst_port;
        event.has |= event_has::PORTS;
    }
}

#[inline(always)]
fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
