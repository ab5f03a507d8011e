//! What `to_pod` promises, whatever the host's stack sends.
//!
//! - It learns of flows between pods alone, both directions, and only that the stack has them.
//! - It does not matter how much of the packet is in the linear part.

use margay_abi::flow_verdict::VIA_STACK;

use crate::reading::{self, ETHERNET, bytes, ethertype};
use crate::scene::{OTHER, OWN, Scene};
use crate::to_pod::{is_answer, learn};

/// Hands a packet to `to_pod` and holds what it learns against its promises.
///
/// # Panics
/// When one of them is broken.
pub fn check(input: &[u8]) {
    let Some(scene) = Scene::read(input) else { return };
    let Scene { packet, maps } = &scene;
    let learnt = learn(packet, maps).is_some();
    let answer = is_answer(packet);

    let linear = Scene { packet: packet.clone().linear(), maps: scene.maps.clone() };
    linear.maps.written_v4.borrow_mut().clear();
    linear.maps.written_v6.borrow_mut().clear();
    assert_eq!(learn(&linear.packet, &linear.maps).is_some(), learnt, "depends on the linear part");
    assert_eq!(is_answer(&linear.packet), answer, "depends on the linear part");
    assert_eq!(*linear.maps.written_v4.borrow(), *maps.written_v4.borrow());
    assert_eq!(*linear.maps.written_v6.borrow(), *maps.written_v6.borrow());

    check_learnt(&scene, learnt);
    if answer {
        assert_eq!(packet.ingress_ifindex, packet.ifindex, "the stack's own for an answer");
        assert!(matches!(reading::ethertype(&packet.bytes), ethertype::ARP | ethertype::IPV6));
    }
}

fn check_learnt(Scene { packet, maps }: &Scene, learnt: bool) {
    let v4 = maps.written_v4.borrow();
    let v6 = maps.written_v6.borrow();
    assert!(v4.iter().all(|(_, verdict)| *verdict == VIA_STACK));
    assert!(v6.iter().all(|(_, verdict)| *verdict == VIA_STACK));
    let written = v4.len() + v6.len();
    let wanted = if learnt && maps.known != Some(VIA_STACK) { 2 } else { 0 };
    assert_eq!(written, wanted, "the two directions disagree");
    let frame = &packet.bytes;
    if let [(one, _), (other, _)] = v4[..] {
        assert_eq!(one.reversed(), other);
        let (src, dst) = (bytes(frame, ETHERNET + 12), bytes(frame, ETHERNET + 16));
        assert_eq!((other.src, other.dst), (src, dst));
        assert!(OWN.v4.contains(&src) || OTHER.v4.contains(&src), "the sender is no pod");
    }
    if let [(one, _), (other, _)] = v6[..] {
        assert_eq!(one.reversed(), other);
        let (src, dst) = (bytes(frame, ETHERNET + 8), bytes(frame, ETHERNET + 24));
        assert_eq!((other.src, other.dst), (src, dst));
        assert!(OWN.v6.contains(&src) || OTHER.v6.contains(&src), "the sender is no pod");
    }
}
