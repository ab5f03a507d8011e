//! What tells `to_pod` that a packet has come through the host's stack without NAT.
//!
//! In a protocol without a SYN, a packet of which the flow table knows nothing may begin a flow
//! between two pods, or answer on a flow under NAT whose entries are lost. Conntrack alone knows, so
//! the packet goes to the stack, with the hash of its addresses and ports beside it (`skb->hash`,
//! which nothing on the way replaces). If it comes out at `to_pod` with addresses and ports of that
//! same hash, the stack had nothing to do or undo about it, and the flow can do without the stack.
//!
//! The packet itself has to bring the proof. An entry of the flow table that waits for the tuple
//! would do for most, but not where one socket speaks to a Service and to the pod behind it:
//! conntrack gives what goes to the pod another source port, and what it sends out with the awaited
//! tuple is the Service's, whose answers need it.

use bytemuck::{Pod, bytes_of};

use crate::ip::Directed;

/// The hash of a flow in one direction, never 0, which stands for none. Every step can be undone, so
/// that keys and directions that differ stay apart until 64 bits become 32 at the end.
///
/// A packet that was not given it carries 0 or a random number of its socket's, which is taken for
/// this once in 2³² sockets. It then costs such a socket an answer, not more: what it sends next
/// leaves the flow to the stack.
#[inline(always)]
pub(crate) fn of<K: Pod>(flow: &Directed<K>) -> u32 {
    const { assert!(size_of::<K>().is_multiple_of(4), "the rest would not count") };
    // Beyond what the first word of a key reaches.
    let mut hash = u64::from(flow.is_reversed) << 32;
    for word in bytes_of(&flow.key).chunks_exact(4) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        hash = (hash ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    ((hash >> 32) as u32 ^ hash as u32).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use margay_abi::FlowKeyV4;

    use super::*;

    const KEY: FlowKeyV4 = FlowKeyV4 {
        src: [10, 244, 0, 5],
        dst: [10, 244, 0, 6],
        src_port: [0x80, 1],
        dst_port: [0, 53],
        protocol: 17,
        reserved: [0; 3],
    };

    fn there<K>(key: K) -> Directed<K> {
        Directed { key, is_reversed: false }
    }

    #[test]
    fn no_source_port_that_conntrack_may_choose_hashes_like_another() {
        let keys = (0..=u16::MAX).map(|port| FlowKeyV4 { src_port: port.to_be_bytes(), ..KEY });

        let hashes: HashSet<u32> = keys.map(|key| of(&there(key))).collect();

        assert_eq!(hashes.len(), 65_536);
    }

    #[test]
    fn every_byte_of_a_key_matters() {
        for byte in 0..size_of::<FlowKeyV4>() {
            let mut bytes: [u8; 16] = bytemuck::cast(KEY);
            bytes[byte] ^= 1;
            assert_ne!(of(&there(bytes)), of(&there(KEY)), "byte {byte}");
        }
    }

    #[test]
    fn the_way_back_has_another_hash() {
        assert_ne!(of(&there(KEY)), of(&Directed { key: KEY, is_reversed: true }));
    }
}
