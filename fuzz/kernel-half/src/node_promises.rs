//! What the programs of a node among others promise, whatever a pod, another node or the stack sends.
//!
//! - What goes to another node is for a pod there, from this interface's pod, and as it was sent but for
//!   MAC addresses, hop limit and header checksum; nothing plain goes to the overlay's port.
//! - What comes from another node is never dropped, and what is delivered of it is for a pod of this
//!   node, from one of another, and as it was sent but for the same.
//! - What the stack has stays with the stack. What `from_pod` sends teaches nothing on its way out.
//! - It does not matter how much of the packet is in the linear part.

use margay_abi::{Overlay, PodToNode, Remote, flow_verdict, remote_mode};

use crate::buffer::{OWN_NODE, UPLINK};
use crate::from_node;
use crate::reading::{self, ETHERNET, bytes, ethertype, number};
use crate::scene::{FAR_V4, FAR_V6, OWN, Scene};
use crate::to_pod::{Hook, learn};
use crate::verdict::{DropReason, StackReason, Verdict};
use crate::{from_pod, pod_to_node};

const NODE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 0, 9];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 9, 0];
const NODE_MTU: u32 = 1350;
const PORT: u16 = 4789;
const OVERLAY: Overlay = Overlay {
    ifindex_v4: 9,
    ifindex_v6: 8,
    vni: 4096,
    port: PORT.to_be_bytes(),
    mac: [2, 0, 0, 0, 0, 9],
};

/// Bits of an input's first byte, before those of a scene.
mod choice {
    pub(super) const PLAIN: u8 = 1;
    pub(super) const ARRIVES: u8 = 2;
    pub(super) const FOR_ANOTHER_HOST: u8 = 8;
    pub(super) const WITHOUT_ROUTE: u8 = 16;
}

/// Hands a packet to the programs of a node and holds the outcome against their promises.
///
/// # Panics
/// When one of them is broken.
pub fn check(input: &[u8]) {
    let Some((&choices, input)) = input.split_first() else { return };
    let Some(mut scene) = Scene::read(input) else { return };
    let chosen = |bit| choices & bit != 0;
    let mode = if chosen(choice::PLAIN) { remote_mode::PLAIN } else { remote_mode::VXLAN };
    scene.maps.remote =
        Some(Remote { node: NODE, mtu: NODE_MTU, mac: NODE_MAC, mode, reserved: 0 });
    scene.maps.overlay = Some(OVERLAY);
    scene.packet.is_for_another_host = chosen(choice::FOR_ANOTHER_HOST);
    scene.packet.has_no_route = chosen(choice::WITHOUT_ROUTE);
    if chosen(choice::ARRIVES) {
        check_arriving(scene);
    } else {
        check_leaving(scene, mode);
    }
}

fn check_leaving(mut scene: Scene, mode: u8) {
    let sent = scene.packet.bytes.clone();
    let mut linear = Scene { packet: scene.packet.clone().linear(), ..scene.clone() };
    let outcome = leave(&mut scene);
    assert_eq!(leave(&mut linear), outcome, "depends on the linear part");
    assert_eq!(linear.packet.bytes, scene.packet.bytes, "depends on the linear part");

    let got = &scene.packet.bytes;
    match outcome {
        Ok(Verdict::Send(_)) => {
            let way = scene.packet.redirected.get();
            let is_wrapped = mode == remote_mode::VXLAN && way == Some(UPLINK);
            let inside = if is_wrapped { check_wrapping(got) } else { got };
            check_as_sent(&sent, inside);
            assert!(is_own_source(&sent) && is_far(&sent, Address::Destination), "of strangers");
            assert_eq!(reading::source_mac(&sent), OWN.mac, "foreign MAC");
            assert!(!is_for_overlay(&sent), "a packet for the overlay's port passes");
            if mode == remote_mode::VXLAN {
                assert!(is_wrapped || way == Some(OVERLAY.ifindex_v4));
                assert_eq!(inside[..12], [NODE_MAC, OVERLAY.mac].concat());
            } else {
                assert_eq!(way, Some(UPLINK));
            }
            assert!(longest(&sent, scene.packet.gso_size) <= NODE_MTU, "too long for the way");
            check_flow(&scene);
            assert_eq!(
                learn(&scene.packet, &scene.maps, Hook::ToNode),
                None,
                "taken for the stack's"
            );
        }
        Ok(Verdict::Stack(_) | Verdict::Elsewhere { .. }) => {
            assert_eq!(scene.packet.redirected.get(), None);
            if scene.maps.written_v4.borrow().is_empty()
                && scene.maps.written_v6.borrow().is_empty()
            {
                assert_eq!(*got, sent, "the stack gets it as it was sent");
            }
        }
        Ok(Verdict::Deliver { .. } | Verdict::Answer(_)) => {}
        Err(_) => assert_eq!(*got, sent, "dropped as it was sent"),
    }
}

/// As the two programs share it.
fn leave(scene: &mut Scene) -> Result<Verdict, DropReason> {
    let (reason, sender_flags) = match from_pod::handle(&mut scene.packet, &scene.maps)? {
        Verdict::Stack(reason) => (reason, 0),
        Verdict::Elsewhere { flags } => (StackReason::NotLocal, flags),
        verdict => return Ok(verdict),
    };
    let notes = PodToNode { reason: reason as u32, sender_flags };
    pod_to_node::handle(&mut scene.packet, notes, &scene.maps)
}

fn check_arriving(mut scene: Scene) {
    let sent = scene.packet.bytes.clone();
    let mut linear = Scene { packet: scene.packet.clone().linear(), ..scene.clone() };
    let outcome = from_node::handle(&mut scene.packet, &scene.maps);
    let again = from_node::handle(&mut linear.packet, &linear.maps);
    assert_eq!(again, outcome, "depends on the linear part");
    assert_eq!(linear.packet.bytes, scene.packet.bytes, "depends on the linear part");

    let got = &scene.packet.bytes;
    match outcome {
        Some(Verdict::Deliver { ifindex, .. }) => {
            check_as_sent(&sent, got);
            assert!(is_far(&sent, Address::Source), "of a stranger");
            assert!(!scene.packet.is_for_another_host && !scene.packet.has_vlan_tag);
            let is_own = if ifindex == OWN.ifindex { OWN.mac } else { crate::scene::OTHER.mac };
            assert_eq!(reading::destination_mac(got), is_own);
            check_flow(&scene);
        }
        Some(Verdict::Stack(_)) | None => {
            if scene.maps.written_v4.borrow().is_empty()
                && scene.maps.written_v6.borrow().is_empty()
            {
                assert_eq!(*got, sent, "the stack gets it as it was sent");
            }
        }
        Some(verdict) => panic!("{verdict:?}"),
    }
}

/// In VXLAN from this node to the other one. Returns the frame inside.
fn check_wrapping(got: &[u8]) -> &[u8] {
    let outer = &got[ETHERNET..];
    assert_eq!(outer[..2], [0x45, outer[1] & 3]);
    assert_eq!(usize::from(number(outer, 2)), outer.len());
    assert_eq!(outer[6..10], [0, 0, 64, 17]);
    assert_eq!(reading::checksum(&[&outer[..20]]), 0);
    assert_eq!(outer[12..20], [OWN_NODE, [192, 168, 0, 9]].concat());
    assert_eq!((number(outer, 22), number(outer, 26)), (PORT, 0));
    assert_eq!(usize::from(number(outer, 24)), outer.len() - 20);
    assert_eq!(outer[28..36], [8, 0, 0, 0, 0, 0x10, 0, 0]);
    &outer[36..]
}

/// The IP packet is that which was sent, with a hop less to go.
fn check_as_sent(sent: &[u8], got: &[u8]) {
    assert_eq!(got.len(), sent.len());
    assert_eq!(got[12..ETHERNET], sent[12..ETHERNET]);
    let is_ipv4 = reading::ethertype(sent) == ethertype::IPV4;
    let hop_limit = ETHERNET + if is_ipv4 { 8 } else { 7 };
    assert!(sent[hop_limit] > 1, "goes on at the end of its life");
    assert_eq!(got[hop_limit], sent[hop_limit] - 1);
    let changes =
        if is_ipv4 { vec![hop_limit, ETHERNET + 10, ETHERNET + 11] } else { vec![hop_limit] };
    for at in (ETHERNET..sent.len()).filter(|at| !changes.contains(at)) {
        assert_eq!(got[at], sent[at], "changed at {at}");
    }
    if is_ipv4 {
        assert_eq!(sent[ETHERNET], 0x45, "options are the stack's");
        assert_eq!(number(sent, ETHERNET + 6) & 0x3fff, 0, "fragments are the stack's");
        let header = |frame: &[u8]| reading::checksum(&[&frame[ETHERNET..ETHERNET + 20]]);
        assert!(header(sent) != 0 || header(got) == 0, "broke the header checksum");
    }
}

/// What goes past the stack is no flow of the stack's, or begins one.
fn check_flow(scene: &Scene) {
    assert_ne!(scene.maps.known, Some(flow_verdict::VIA_STACK), "the stack has it");
    let v4 = scene.maps.written_v4.borrow();
    let v6 = scene.maps.written_v6.borrow();
    let written =
        v4.iter().map(|(_, verdict)| verdict).chain(v6.iter().map(|(_, verdict)| verdict));
    let written: Vec<u8> = written.copied().collect();
    match scene.maps.known {
        None => assert_eq!(written, [flow_verdict::DIRECT], "nothing begins it"),
        Some(_) => assert!(written.iter().all(|verdict| *verdict == flow_verdict::DIRECT)),
    }
}

fn longest(sent: &[u8], gso_size: u32) -> u32 {
    if gso_size == 0 { (sent.len() - ETHERNET) as u32 } else { gso_size }
}

fn is_own_source(frame: &[u8]) -> bool {
    match reading::ethertype(frame) {
        ethertype::IPV4 => OWN.v4.contains(&bytes(frame, ETHERNET + 12)),
        _ => OWN.v6.contains(&bytes(frame, ETHERNET + 8)),
    }
}

#[derive(Clone, Copy)]
enum Address {
    Source,
    Destination,
}

fn is_far(frame: &[u8], which: Address) -> bool {
    let (v4, v6) = match which {
        Address::Source => (ETHERNET + 12, ETHERNET + 8),
        Address::Destination => (ETHERNET + 16, ETHERNET + 24),
    };
    match reading::ethertype(frame) {
        ethertype::IPV4 => bytes::<3>(frame, v4) == FAR_V4,
        _ => bytes::<15>(frame, v6) == FAR_V6,
    }
}

/// UDP behind a plain header.
fn is_for_overlay(frame: &[u8]) -> bool {
    let (protocol, port) = match reading::ethertype(frame) {
        ethertype::IPV4 => (frame[ETHERNET + 9], number(frame, ETHERNET + 22)),
        _ => (frame[ETHERNET + 6], number(frame, ETHERNET + 42)),
    };
    protocol == 17 && port == PORT
}
