//! What `to_pod` promises, whatever the host's stack sends.
//!
//! - It learns of flows between pods alone, once for both directions, and only that the stack has
//!   them, but where the packet is one of `from_pod`'s that nothing is known of, and as it was there.
//! - It does not matter how much of the packet is in the linear part.

use margay_abi::flow_verdict::{DIRECT, VIA_STACK};

use crate::from_pod::handle;
use crate::reading::{self, ETHERNET, bytes};
use crate::scene::{OTHER, OWN, Scene};
use crate::to_pod::{Hook, learn};

/// Hands a packet to `to_pod` and holds what it learns against its promises.
///
/// # Panics
/// When one of them is broken.
pub fn check(input: &[u8]) {
    let Some(mut scene) = Scene::read(input) else { return };
    if scene.was_in_from_pod {
        scene.packet.flow_hash = hash_from_pod(&scene);
    }
    let Scene { packet, maps, .. } = &scene;
    let learnt = learn(packet, maps, Hook::ToPod).is_some();

    let linear = Scene { packet: packet.clone().linear(), ..scene.clone() };
    linear.maps.written_v4.borrow_mut().clear();
    linear.maps.written_v6.borrow_mut().clear();
    assert_eq!(
        learn(&linear.packet, &linear.maps, Hook::ToPod).is_some(),
        learnt,
        "depends on the linear part"
    );
    assert_eq!(*linear.maps.written_v4.borrow(), *maps.written_v4.borrow());
    assert_eq!(*linear.maps.written_v6.borrow(), *maps.written_v6.borrow());

    check_learnt(&scene, learnt);
}

/// The hash that the packet has behind `from_pod`, to which nothing is known.
fn hash_from_pod(scene: &Scene) -> u32 {
    let mut scene = scene.clone();
    scene.maps.known = None;
    handle(&mut scene.packet, &scene.maps).map_or(0, |_| scene.packet.flow_hash)
}

fn check_learnt(Scene { packet, maps, .. }: &Scene, learnt: bool) {
    let v4 = maps.written_v4.borrow();
    let v6 = maps.written_v6.borrow();
    let verdict = match (packet.flow_hash, maps.known) {
        (0, _) | (_, Some(VIA_STACK)) => VIA_STACK,
        _ => DIRECT,
    };
    assert!(v4.iter().all(|(_, written)| *written == verdict));
    assert!(v6.iter().all(|(_, written)| *written == verdict));
    assert!(learnt || packet.flow_hash == 0, "from_pod knows the flow, and to_pod does not");
    let written = v4.len() + v6.len();
    let wanted = usize::from(learnt && maps.known != Some(verdict));
    assert_eq!(written, wanted, "a flow is remembered once");
    let frame = &packet.bytes;
    if let [(key, _)] = v4[..] {
        let (src, dst) = (bytes(frame, ETHERNET + 12), bytes(frame, ETHERNET + 16));
        assert_eq!([key.src, key.dst], reading::sorted([src, dst]));
        assert!(OWN.v4.contains(&src) || OTHER.v4.contains(&src), "the sender is no pod");
    }
    if let [(key, _)] = v6[..] {
        let (src, dst) = (bytes(frame, ETHERNET + 8), bytes(frame, ETHERNET + 24));
        assert_eq!([key.src, key.dst], reading::sorted([src, dst]));
        assert!(OWN.v6.contains(&src) || OTHER.v6.contains(&src), "the sender is no pod");
    }
}
