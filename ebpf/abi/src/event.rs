//! What the programs tell of their work, to whom and how often. None of it is pinned but the slots of
//! [`tail_call`]: who listens has a reporter, and maps, of its own.

use bytemuck::{Pod, Zeroable};

/// Slots of `tail_calls`.
pub mod tail_call {
    use core::ops::Range;

    /// What `from_pod` goes on in, on a node among others.
    pub const POD_TO_NODE: u32 = 0;
    /// What a program ends in that has something to tell, one for each who listens.
    pub const REPORTERS: Range<u32> = 1..9;
    /// Number of slots.
    pub const COUNT: u32 = REPORTERS.end;
}

/// Maps of a reporter, named as those of [`map_name`](crate::map_name).
pub mod report_map {
    /// [`Interest`](super::Interest), array of one.
    pub const INTEREST: &str = "report_interest";
    /// [`interest`](super::interest) bits by IPv6 prefix, IPv4 as `::ffff:a.b.c.d`, LPM trie: a prefix length in
    /// 32 bits and `[u8; 16]`.
    pub const HOSTS: &str = "report_hosts";
    /// [`interest`](super::interest) bits by interface index, hash.
    pub const LINKS: &str = "report_links";
    /// [`Quota`](super::Quota), per-CPU array of one.
    pub const QUOTA: &str = "report_quota";
    /// The records of aya-log, ring buffer.
    pub const LOG: &str = "AYA_LOGS";
    /// All that have the types of this module.
    pub const ALL: [&str; 4] = [INTEREST, HOSTS, LINKS, QUOTA];
}

/// Entries of `report_hosts` and of `report_links`. Not preallocated.
pub const MAX_REPORTED: u32 = 1024;

/// Where something happens.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `from_pod`.
    FromPod = 1,
    /// `to_pod`.
    ToPod = 2,
    /// `pod_to_node`, after `from_pod`.
    PodToNode = 3,
    /// `from_overlay`.
    FromOverlay = 4,
    /// `to_overlay`.
    ToOverlay = 5,
    /// `from_uplink`.
    FromUplink = 6,
    /// `to_uplink`.
    ToUplink = 7,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 7] = [
        Self::FromPod,
        Self::ToPod,
        Self::PodToNode,
        Self::FromOverlay,
        Self::ToOverlay,
        Self::FromUplink,
        Self::ToUplink,
    ];

    /// The name of its program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        use crate::program_name as name;
        match self {
            Self::FromPod => name::FROM_POD,
            Self::ToPod => name::TO_POD,
            Self::PodToNode => name::POD_TO_NODE,
            Self::FromOverlay => name::FROM_OVERLAY,
            Self::ToOverlay => name::TO_OVERLAY,
            Self::FromUplink => name::FROM_UPLINK,
            Self::ToUplink => name::TO_UPLINK,
        }
    }
}

/// What a program has to tell of a packet, beside the packet (`skb->cb`, third word). All zero is nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Note {
    /// The [verdict](crate::flow_verdict) that its flow had; 0 if there was none.
    pub was: u8,
    /// The verdict that its flow has got; 0 if it is as it was.
    pub is: u8,
    /// The [`Counter`](crate::Counter) of a packet that is dropped; else 0.
    pub dropped: u8,
    /// The [`Hook`], written last.
    pub hook: u8,
}

/// Value of `report_interest`: what one who listens wants to know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interest {
    /// A bit for each [`Counter`](crate::Counter) of drops.
    pub drops: u32,
    /// 1 for changes of flows' verdicts.
    pub flows: u32,
    /// All of these [`interest`] bits must be found, by the packet's addresses and interface.
    pub bits: u32,
    /// Events in a second, of each CPU.
    pub rate: u32,
}

/// Bits of [`Interest::bits`].
pub mod interest {
    /// It is of a pod that was asked for.
    pub const POD: u32 = 1 << 0;
    /// It has an address that was asked for.
    pub const ADDRESS: u32 = 1 << 1;
}

/// Value of `report_quota`, one per CPU. Written by the reporter alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Quota {
    /// The second since boot that [`told`](Self::told) is of.
    pub second: u64,
    /// Events that were told in it.
    pub told: u64,
    /// Events that were told in all.
    pub all: u64,
    /// Events beyond the rate, which were not told.
    pub suppressed: u64,
}

impl Quota {
    /// Whether one more may be told at `now_ns`; counts it either way.
    #[inline(always)]
    pub fn admits(&mut self, now_ns: u64, rate: u32) -> bool {
        let second = now_ns / 1_000_000_000;
        if self.second != second {
            self.second = second;
            self.told = 0;
        }
        if self.told >= rate as u64 {
            self.suppressed += 1;
            return false;
        }
        self.told += 1;
        self.all += 1;
        true
    }
}

/// One event, as the bytes that aya-log carries in hexadecimal digits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Source address, or the sender in ARP, IPv4 as `::ffff:a.b.c.d`; zero where there is none.
    pub src: [u8; 16],
    /// Destination address, or the target in ARP; likewise.
    pub dst: [u8; 16],
    /// Interface whose hook it is.
    pub ifindex: u32,
    /// Length of the packet from the Ethernet header on.
    pub bytes: u32,
    /// Source port, network byte order, or the identifier of ICMP echo; of an error that of the flow that it
    /// quotes is not here.
    pub src_port: [u8; 2],
    /// Destination port, likewise.
    pub dst_port: [u8; 2],
    /// EtherType, network byte order.
    pub ethertype: [u8; 2],
    /// Source of the Ethernet header.
    pub mac: [u8; 6],
    /// What happened.
    pub note: Note,
    /// IP protocol number, the last next-header that was found.
    pub protocol: u8,
    /// Bits of [`event_has`].
    pub has: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// Bits of [`Event::has`].
pub mod event_has {
    /// Addresses.
    pub const ADDRESSES: u8 = 1 << 0;
    /// A protocol.
    pub const PROTOCOL: u8 = 1 << 1;
    /// Ports.
    pub const PORTS: u8 = 1 << 2;
}

const _: () = {
    assert!(size_of::<Note>() == 4);
    assert!(size_of::<Interest>() == 16);
    assert!(size_of::<Quota>() == 32);
    assert!(size_of::<Event>() == 72);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_no_more_events_than_the_rate_and_the_rest_is_counted() {
        const SECOND: u64 = 1_000_000_000;
        let mut quota = Quota::default();

        let admitted = (0..5).filter(|_| quota.admits(7 * SECOND + 5, 3)).count();
        let next = quota.admits(8 * SECOND, 3);

        assert_eq!(admitted, 3);
        assert!(next);
        assert_eq!((quota.all, quota.suppressed), (4, 2));
    }

    #[test]
    fn a_hooks_number_is_its_place() {
        for (place, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, place + 1);
        }
    }
}
