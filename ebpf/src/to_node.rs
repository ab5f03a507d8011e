//! `to_overlay` and `to_uplink`, the TC egress hooks of the interfaces that lead to other nodes.
//!
//! They see what `pod_to_node` sends to other nodes, and what the host's stack sends. The first they know
//! by its mark ([`Packet::is_sent`](crate::packet::Packet::is_sent)) and let pass. From the second they learn as `to_pod` does, of flows from a pod of this node to one of another. Without them an answer to a
//! connection that NAT has led to another node could take the fast path back, past the un-NAT, if the
//! same ports were those of a direct connection before. Invariant: they pass every packet unchanged.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::{
    maps::KernelMaps,
    packet::Skb,
    to_pod::{Hook, learn},
};

#[classifier]
pub(crate) fn to_overlay(context: TcContext) -> i32 {
    learn(&Skb::new(&context), &KernelMaps, Hook::ToNode);
    TC_ACT_UNSPEC
}

#[classifier]
pub(crate) fn to_uplink(context: TcContext) -> i32 {
    learn(&Skb::new(&context), &KernelMaps, Hook::ToNode);
    TC_ACT_UNSPEC
}
