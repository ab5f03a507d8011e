//! The aya-log event of a dropped packet, for an operator who has switched it on.
//!
//! It reads the packet anew, so that the hooks carry nothing along for it, and it is one event with
//! the same fields for every packet, since each further format costs the verifier a millisecond.

use aya_log_ebpf::info;

use crate::{
    arp::ArpFrame,
    ethernet::{self, Ethernet, ethertype},
    ip::{Ipv4, Ipv6},
    packet::{Packet, Skb},
    verdict::DropReason,
};

/// Sends the event; a full ring loses it. The reason is the number of its
/// [`Counter`](margay_abi::Counter).
///
/// Not `#[cold]`, which would give it a section of its own: aya-obj 0.3 takes functions at the same
/// offset of two sections for one (`FunctionLinker::linked_functions`).
#[inline(never)]
pub(crate) fn report(packet: &Skb, reason: DropReason) {
    let Some(Ethernet { src: mac, ethertype, .. }) = packet.read(0) else {
        return;
    };
    let (src, dst) = addresses(packet, ethertype).unwrap_or_default();
    info!(
        packet,
        "drop {} ifindex {} mac {:mac}: {:i} > {:i}",
        reason as u32,
        packet.ifindex(),
        mac,
        src,
        dst
    );
}

/// Source and destination, or sender and target of ARP. IPv4 addresses are mapped into IPv6
/// (`::ffff:10.244.0.5`).
#[inline(always)]
fn addresses(packet: &impl Packet, ethertype: [u8; 2]) -> Option<([u8; 16], [u8; 16])> {
    match ethertype {
        ethertype::IPV4 => {
            let ip: Ipv4 = packet.read(ethernet::HEADER_LEN)?;
            Some((mapped(ip.src), mapped(ip.dst)))
        }
        ethertype::IPV6 => {
            let ip: Ipv6 = packet.read(ethernet::HEADER_LEN)?;
            Some((ip.src, ip.dst))
        }
        ethertype::ARP => {
            let arp: ArpFrame = packet.read(0)?;
            Some((mapped(arp.sender), mapped(arp.target)))
        }
        _ => None,
    }
}

#[inline(always)]
fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
