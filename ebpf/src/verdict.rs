//! What a hook decides about a packet, and how that becomes a TC action and a row of `stats`.
//!
//! Every reason is one [`Counter`]: the two enums narrow it, so that a drop cannot be counted as a
//! pass or the other way round.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use margay_abi::Counter;

use crate::packet::Packet;

/// What happens to a packet that is not dropped.
///
/// Together with [`DropReason`] it fits into one register, which is what lets a hook be made of
/// several BPF functions: each has a stack frame of its own, and can return nothing larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Rewritten for the pod behind the host veth `ifindex`, and delivered into it.
    Deliver { ifindex: u32, family: Family },
    /// On its way to the node that has the receiver.
    Send(Family),
    /// Turned into the answer to itself, and sent back to the pod it came from.
    Answer(Answered),
    /// Left to the host's stack as it is.
    Stack(StackReason),
    /// Not for a pod of this node. `flags` are those of the sender ([`margay_abi::pod_flags`]). Left to
    /// the stack where there are no other nodes, and otherwise for
    /// [`pod_to_node`](crate::pod_to_node) to decide.
    Elsewhere { flags: u32 },
}

/// The address family of what goes past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    #[inline(always)]
    const fn choose(self, [v4, v6]: [Counter; 2]) -> u32 {
        match self {
            Self::Ipv4 => v4 as u32,
            Self::Ipv6 => v6 as u32,
        }
    }
}

/// Counters of what is delivered, by family: from pods of this node, and of others.
pub(crate) const FROM_HERE: [Counter; 2] = [Counter::DirectV4, Counter::DirectV6];
pub(crate) const FROM_NODES: [Counter; 2] = [Counter::FromNodeV4, Counter::FromNodeV6];

/// The protocol of an answer.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    Arp = Counter::ArpAnswered as u8,
    Ndp = Counter::NdpAnswered as u8,
}

/// Why the host's stack gets a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackReason {
    NotLocal = Counter::StackNotLocal as u8,
    Flow = Counter::StackFlow as u8,
    Unsupported = Counter::StackUnsupported as u8,
    IcmpError = Counter::StackIcmpError as u8,
    Control = Counter::StackControl as u8,
    Multicast = Counter::StackMulticast as u8,
}

/// Why a packet is dropped.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    SpoofedSource = Counter::DropSpoofedSource as u8,
    ArpIgnored = Counter::DropArpIgnored as u8,
    Malformed = Counter::DropMalformed as u8,
    RouterMessage = Counter::DropRouterMessage as u8,
    Encapsulated = Counter::DropEncapsulated as u8,
}

const _: () = assert!(size_of::<Result<Verdict, DropReason>>() <= size_of::<u64>());

/// Carries out a hook's outcome: the TC action, and the index of the row of `stats` that counts it.
#[inline(always)]
pub(crate) fn conclude(
    packet: &impl Packet,
    outcome: Result<Verdict, DropReason>,
    delivered: [Counter; 2],
) -> (i32, u32) {
    match outcome {
        Ok(Verdict::Deliver { ifindex, family }) => {
            (packet.redirect_peer(ifindex), family.choose(delivered))
        }
        Ok(Verdict::Send(family)) => {
            (TC_ACT_REDIRECT, family.choose([Counter::ToNodeV4, Counter::ToNodeV6]))
        }
        Ok(Verdict::Answer(protocol)) => (packet.redirect_back(), protocol as u32),
        // Not `TC_ACT_OK`, which would end the classification: a filter behind this one, under
        // clsact or, with TCX, under whatever qdisc there is, may be what limits a pod's rate.
        Ok(Verdict::Stack(reason)) => (TC_ACT_UNSPEC, reason as u32),
        Ok(Verdict::Elsewhere { .. }) => (TC_ACT_UNSPEC, StackReason::NotLocal as u32),
        Err(reason) => (TC_ACT_SHOT, reason as u32),
    }
}
