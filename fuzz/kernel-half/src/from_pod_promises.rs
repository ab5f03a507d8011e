//! What `from_pod` promises, whatever a pod sends.
//!
//! - Nothing passes as IP or ARP whose source is not this interface's pod.
//! - What is delivered is what was sent but for the MAC addresses and the hop limit, and an IPv4
//!   header checksum that was right still is.
//! - Answers go to the one who asked, and claim nothing that is the pod's own.
//! - What goes to the stack or is dropped is as it was sent, but for the FIN of a flow that nothing
//!   is known of, which is lost and its checksum made up for.
//! - What the stack has stays with the stack, and a flow is remembered once, for both directions.
//! - Nothing but a SYN or an echo request begins a flow. What may be a first packet all the same goes to
//!   the stack with its hash, and nothing else has one.
//! - It does not matter how much of the packet is in the linear part.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use margay_abi::{GATEWAY_V4, GATEWAY_V6, HOST_VETH_MAC, flow_verdict};

use crate::from_pod::handle;
use crate::reading::{self, ETHERNET, bytes, ethertype, number};
use crate::scene::{Maps, OTHER, OTHER_HOST_MAC, OTHER_MTU, OWN, Scene};
use crate::verdict::{Answered, DropReason, FROM_HERE, Family, StackReason, Verdict, conclude};

/// Hands a packet to `from_pod` and holds the outcome against its promises.
///
/// # Panics
/// When one of them is broken.
pub fn check(input: &[u8]) {
    let Some(mut scene) = Scene::read(input) else { return };
    let mut linear = Scene { packet: scene.packet.clone().linear(), ..scene.clone() };
    let sent = scene.packet.bytes.clone();
    let outcome = handle(&mut scene.packet, &scene.maps);

    assert_eq!(handle(&mut linear.packet, &linear.maps), outcome, "depends on the linear part");
    assert_eq!(linear.packet.bytes, scene.packet.bytes, "depends on the linear part");

    let left = &scene.packet.bytes;
    assert_eq!(left.len(), sent.len());
    match outcome {
        Ok(Verdict::Deliver { ifindex, family }) => {
            assert_eq!(ifindex, OTHER.ifindex);
            check_source(&sent);
            check_delivered(&sent, &scene, family);
        }
        Ok(Verdict::Answer(protocol)) => {
            check_source(&sent);
            check_answer(&sent, &scene, protocol);
        }
        Ok(Verdict::Stack(reason)) => {
            check_source(&sent);
            if loses_fin(&sent, &scene.maps, reason) {
                check_lost_fin(&sent, left);
            } else {
                assert_eq!(*left, sent, "the stack gets it as it was sent");
            }
            check_link_scope(&sent, reason);
        }
        Ok(Verdict::Elsewhere { flags }) => {
            check_source(&sent);
            assert_eq!(*left, sent, "others get it as it was sent");
            assert_eq!(flags, scene.maps.own_flags());
            assert_ne!(reading::destination_mac(&sent)[0] & 1, 1, "for everybody");
        }
        Ok(Verdict::Send(_)) => panic!("sends to another node by itself"),
        Err(_) => assert_eq!(*left, sent, "dropped as it was sent"),
    }
    if sent.len() >= ETHERNET {
        check_flows(&sent, &scene.maps, outcome);
        check_hash(&sent, &scene, outcome);
    }
    check_action(&scene, outcome);
}

/// The source is this interface's pod, as far as the packet has a source: an address that means
/// something on this link only is the link's own matter.
fn check_source(sent: &[u8]) {
    let mac = reading::source_mac(sent);
    match reading::ethertype(sent) {
        ethertype::IPV4 => {
            assert!(OWN.v4.contains(&bytes(sent, ETHERNET + 12)), "foreign source");
            assert_eq!(mac, OWN.mac, "foreign MAC");
        }
        ethertype::IPV6 => {
            let src = bytes(sent, ETHERNET + 8);
            if src == [0; 16] || reading::is_link_local(src) {
                let dst = bytes(sent, ETHERNET + 24);
                assert!(
                    reading::is_multicast(dst) || reading::is_link_local(dst),
                    "leaves the link"
                );
            } else {
                assert!(OWN.v6.contains(&src), "foreign source");
                assert_eq!(mac, OWN.mac, "foreign MAC");
            }
        }
        ethertype::ARP => {
            assert!(OWN.v4.contains(&bytes(sent, ETHERNET + 14)), "foreign sender");
            assert_eq!(mac, OWN.mac, "foreign MAC");
            assert_eq!(bytes(sent, ETHERNET + 8), OWN.mac, "foreign sender MAC");
        }
        ethertype::VLAN | ethertype::SERVICE_VLAN => panic!("an unread tag passes"),
        _ => {}
    }
}

fn check_delivered(sent: &[u8], scene: &Scene, family: Family) {
    let got = &scene.packet.bytes;
    assert!(!scene.packet.has_vlan_tag, "a tag would be lost");
    assert_eq!(reading::destination_mac(sent), HOST_VETH_MAC, "was not sent to the router");
    assert_eq!(reading::destination_mac(got), OTHER.mac);
    assert_eq!(reading::source_mac(got), OTHER_HOST_MAC);
    assert_eq!(got[12..ETHERNET], sent[12..ETHERNET]);
    let (ip_header_len, hop_limit) = match family {
        Family::Ipv4 => (20, ETHERNET + 8),
        Family::Ipv6 => (40, ETHERNET + 7),
    };
    assert!(sent[hop_limit] > 1, "delivered at the end of its life");
    assert_eq!(got[hop_limit], sent[hop_limit] - 1);
    match family {
        Family::Ipv4 => check_delivered_ipv4(sent, got),
        Family::Ipv6 => check_delivered_ipv6(sent, got),
    }
    match family {
        Family::Ipv4 => assert_eq!(scene.packet.adjustments, [] as [[u8; 2]; 0]),
        Family::Ipv6 => assert_eq!(scene.packet.adjustments, [[0xff, 0xfe]]),
    }
    let longest = match scene.packet.gso_size {
        0 => sent.len() - ETHERNET,
        segment => segment as usize + ip_header_len,
    };
    assert!(longest <= OTHER_MTU as usize, "too long for the receiver");
}

fn check_delivered_ipv4(sent: &[u8], got: &[u8]) {
    assert_eq!(reading::ethertype(sent), ethertype::IPV4);
    assert!(OTHER.v4.contains(&bytes(sent, ETHERNET + 16)), "delivered to somebody else");
    assert_eq!(sent[ETHERNET], 0x45, "options are the stack's");
    assert_eq!(number(sent, ETHERNET + 6) & 0x3fff, 0, "fragments are the stack's");
    assert!(usize::from(number(sent, ETHERNET + 2)) <= sent.len() - ETHERNET);
    let unchanged =
        [ETHERNET..ETHERNET + 8, ETHERNET + 9..ETHERNET + 10, ETHERNET + 12..sent.len()];
    for range in unchanged {
        assert_eq!(got[range.clone()], sent[range.clone()], "changed at {range:?}");
    }
    let header = |frame: &[u8]| reading::checksum(&[&frame[ETHERNET..ETHERNET + 20]]);
    if header(sent) == 0 {
        assert_eq!(header(got), 0, "broke the header checksum");
    }
}

fn check_delivered_ipv6(sent: &[u8], got: &[u8]) {
    assert_eq!(reading::ethertype(sent), ethertype::IPV6);
    assert!(OTHER.v6.contains(&bytes(sent, ETHERNET + 24)), "delivered to somebody else");
    assert!(matches!(sent[ETHERNET + 6], 6 | 17 | 58 | 132), "extension headers are the stack's");
    for range in [ETHERNET..ETHERNET + 7, ETHERNET + 8..sent.len()] {
        assert_eq!(got[range.clone()], sent[range.clone()], "changed at {range:?}");
    }
}

fn check_answer(sent: &[u8], scene: &Scene, protocol: Answered) {
    let got = &scene.packet.bytes;
    assert!(!scene.packet.has_vlan_tag, "the asker is behind a tag");
    assert_eq!(reading::destination_mac(got), reading::source_mac(sent), "answers somebody else");
    assert_eq!(reading::source_mac(got), HOST_VETH_MAC);
    assert_eq!(got[12..ETHERNET], sent[12..ETHERNET]);
    match protocol {
        Answered::Arp => check_arp_answer(sent, got, &scene.maps),
        Answered::Ndp => check_ndp_answer(sent, got, &scene.maps),
    }
}

fn check_arp_answer(sent: &[u8], got: &[u8], maps: &Maps) {
    const BODY: usize = ETHERNET + 8;
    let asked: [u8; 4] = bytes(sent, BODY + 16);
    assert!(asked == GATEWAY_V4 || maps.answers_any(), "nobody asked for the gateway");
    assert_ne!(asked, bytes::<4>(sent, BODY + 6), "claims the asker's own address");
    assert_eq!(number(sent, ETHERNET + 6), 1, "answers what is no request");
    assert_eq!(number(got, ETHERNET + 6), 2, "is no reply");
    assert_eq!(bytes::<6>(got, BODY), HOST_VETH_MAC);
    assert_eq!(bytes::<4>(got, BODY + 6), asked);
    assert_eq!(got[BODY + 10..BODY + 20], sent[BODY..BODY + 10], "the target is the asker");
    assert_eq!(got[BODY + 20..], sent[BODY + 20..], "changed behind the message");
}

fn check_ndp_answer(sent: &[u8], got: &[u8], maps: &Maps) {
    const MESSAGE: usize = ETHERNET + 40;
    const END: usize = MESSAGE + 32;
    let asked: [u8; 16] = bytes(sent, MESSAGE + 8);
    assert!(asked == GATEWAY_V6 || maps.answers_any(), "nobody asked for the gateway");
    assert!(!OWN.v6.contains(&asked), "claims an address of the asker");
    assert_eq!((sent[MESSAGE], sent[ETHERNET + 7]), (135, 255), "is no valid solicitation");
    assert_eq!((got[MESSAGE], got[ETHERNET + 7]), (136, 255), "is no valid advertisement");
    assert_eq!(bytes::<16>(got, ETHERNET + 8), asked);
    assert_eq!(got[ETHERNET + 24..MESSAGE], sent[ETHERNET + 8..ETHERNET + 24], "goes elsewhere");
    assert_eq!(bytes::<16>(got, MESSAGE + 8), asked);
    assert_eq!(bytes::<8>(got, MESSAGE + 24), [2, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
    let pseudo = [0, 0, 0, 32, 0, 0, 0, 58];
    let sum = reading::checksum(&[&got[ETHERNET + 8..MESSAGE], &pseudo, &got[MESSAGE..END]]);
    assert_eq!(sum, 0, "wrong ICMPv6 checksum");
    assert_eq!(got[END..], sent[END..], "changed behind the message");
}

/// What only a router may say does not reach the host's stack from an address of the link.
fn check_link_scope(sent: &[u8], reason: StackReason) {
    if reading::ethertype(sent) != ethertype::IPV6 {
        return;
    }
    let src = bytes(sent, ETHERNET + 8);
    let of_the_link = src == [0; 16] || reading::is_link_local(src);
    if of_the_link {
        assert!(matches!(reason, StackReason::Control | StackReason::Multicast));
    }
    if of_the_link && sent[ETHERNET + 6] == 58 {
        assert!(!matches!(sent[ETHERNET + 40], 134 | 137), "a router's message passes");
    }
}

/// What a flow is remembered as follows from what became of its packet.
fn check_flows(sent: &[u8], maps: &Maps, outcome: Result<Verdict, DropReason>) {
    let is_beginning = tcp_flags(sent).is_some_and(is_syn) || is_echo_request(sent);
    let begins = is_beginning && maps.known.is_none();
    let wanted = match outcome {
        Ok(Verdict::Deliver { .. }) => {
            assert_ne!(maps.known, Some(flow_verdict::VIA_STACK), "delivers what the stack has");
            assert!(begins || maps.known.is_some(), "delivers what may have to be undone of NAT");
            begins.then_some(flow_verdict::DIRECT)
        }
        Ok(Verdict::Stack(reason)) if loses_fin(sent, maps, reason) => {
            Some(flow_verdict::VIA_STACK)
        }
        _ => None,
    };
    let v4 = maps.written_v4.borrow();
    let v6 = maps.written_v6.borrow();
    let verdicts = v4.iter().map(|(_, verdict)| *verdict).chain(v6.iter().map(|(_, v)| *v));
    let wanted: Vec<u8> = wanted.into_iter().collect();
    assert_eq!(verdicts.collect::<Vec<_>>(), wanted, "remembers another thing than it did");
    if let [(key, _)] = v4[..] {
        let ends = [bytes(sent, ETHERNET + 12), bytes(sent, ETHERNET + 16)];
        assert_eq!([key.src, key.dst], reading::sorted(ends));
    }
    if let [(key, _)] = v6[..] {
        let ends = [bytes(sent, ETHERNET + 8), bytes(sent, ETHERNET + 24)];
        assert_eq!([key.src, key.dst], reading::sorted(ends));
    }
}

/// A packet has a hash where it may be the first of a flow, and only there.
fn check_hash(sent: &[u8], scene: &Scene, outcome: Result<Verdict, DropReason>) {
    let may_be_first = outcome == Ok(Verdict::Stack(StackReason::Flow))
        && scene.maps.known.is_none()
        && match sent[protocol_offset(sent)] {
            17 => true,
            1 => sent[payload(sent)] == 0,
            58 => sent[payload(sent)] == 129,
            _ => false,
        };
    assert_eq!(scene.packet.flow_hash != 0, may_be_first, "hash {}", scene.packet.flow_hash);
}

/// Whether the stack gets it without its FIN: nothing is known of the flow that it ends.
fn loses_fin(sent: &[u8], maps: &Maps, reason: StackReason) -> bool {
    let ends = |flags: u8| flags & 0x05 == 0x01 && !is_syn(flags);
    reason == StackReason::Flow && maps.known.is_none() && tcp_flags(sent).is_some_and(ends)
}

fn check_lost_fin(sent: &[u8], got: &[u8]) {
    let tcp = payload(sent);
    let mut wanted = sent.to_vec();
    wanted[tcp + 13] &= !0x01;
    wanted[tcp + 16..tcp + 18].copy_from_slice(&got[tcp + 16..tcp + 18]);
    assert_eq!(got, wanted, "changed more than the FIN");
    // Zero has two forms in one's complement.
    let sum = |frame: &[u8]| reading::checksum(&[&frame[tcp..]]) % 0xffff;
    assert_eq!(sum(got), sum(sent), "broke the TCP checksum");
}

/// Where an IP header names its payload's protocol.
fn protocol_offset(sent: &[u8]) -> usize {
    ETHERNET + if reading::ethertype(sent) == ethertype::IPV4 { 9 } else { 6 }
}

/// Where the payload begins behind a plain IP header.
fn payload(sent: &[u8]) -> usize {
    ETHERNET + if reading::ethertype(sent) == ethertype::IPV4 { 20 } else { 40 }
}

/// The flags of TCP behind a plain IP header.
fn tcp_flags(sent: &[u8]) -> Option<u8> {
    let protocol = match reading::ethertype(sent) {
        ethertype::IPV4 => sent.get(ETHERNET + 9),
        ethertype::IPV6 => sent.get(ETHERNET + 6),
        _ => None,
    };
    protocol.filter(|protocol| **protocol == 6)?;
    sent.get(payload(sent) + 13).copied()
}

/// Behind a plain IP header.
fn is_echo_request(sent: &[u8]) -> bool {
    let request = match (reading::ethertype(sent), sent.get(protocol_offset(sent))) {
        (ethertype::IPV4, Some(1)) => 8,
        (ethertype::IPV6, Some(58)) => 128,
        _ => return false,
    };
    sent.get(payload(sent)) == Some(&request)
}

/// SYN without ACK.
fn is_syn(flags: u8) -> bool {
    flags & 0x12 == 0x02
}

fn check_action(scene: &Scene, outcome: Result<Verdict, DropReason>) {
    let (action, _) = conclude(&scene.packet, outcome, FROM_HERE);
    let wanted = match outcome {
        Ok(Verdict::Deliver { .. } | Verdict::Answer(_) | Verdict::Send(_)) => TC_ACT_REDIRECT,
        Ok(Verdict::Stack(_) | Verdict::Elsewhere { .. }) => TC_ACT_UNSPEC,
        Err(_) => TC_ACT_SHOT,
    };
    assert_eq!(action, wanted);
}
