//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// What a hop limit one lower adds to the 16-bit word that has it in its low byte: −1 in one's
/// complement.
pub(crate) const MINUS_ONE: [u8; 2] = [0xff, 0xfe];

/// The checksum over `parts`, in network byte order. Every part but the last has an even length.
#[inline(always)]
pub(crate) fn checksum<const N: usize>(parts: [&[u8]; N]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += match *word {
                [high, low] => u32::from(u16::from_be_bytes([high, low])),
                [high] => u32::from(high) << 8,
                _ => 0,
            };
        }
    }
    // Two folds do for anything shorter than 128 KiB, since the first leaves at most 0x1fffe.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

/// The IPv4 header checksum after the TTL went down by one. The TTL is the high byte of its word,
/// so the sum loses 0x0100 and its complement, the checksum, gains it.
#[inline(always)]
pub(crate) fn after_ttl_decrement(checksum: [u8; 2]) -> [u8; 2] {
    let sum = u32::from(u16::from_be_bytes(checksum)) + 0x0100;
    // As the kernel's `ip_decrease_ttl`: the carry wraps around, and 0xffff, which is never the
    // checksum of a header, becomes 0x0000.
    ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn sum_of_the_rfc_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

        assert_eq!(checksum([&data]), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn parts_and_odd_ends_sum_like_one_buffer() {
        let whole = [0x12, 0x34, 0x56, 0x78, 0x9a];

        assert_eq!(checksum([&whole[..2], &whole[2..]]), checksum([&whole]));
        assert_eq!(checksum([&whole]), checksum([&[0x12, 0x34, 0x56, 0x78, 0x9a, 0]]));
    }

    #[test]
    fn ttl_decrement_equals_a_full_recalculation_for_every_ttl_and_identification() {
        for identification in 0..=u16::MAX {
            let [high, low] = identification.to_be_bytes();
            let ttl = (identification % 255) as u8 + 1;
            let mut header =
                [0x45, 0, 0, 84, high, low, 0x40, 0, ttl, 1, 0, 0, 10, 244, 0, 5, 10, 244, 0, 6];
            let before = checksum([&header]);
            header[8] -= 1;

            assert_eq!(after_ttl_decrement(before), checksum([&header]), "id {identification}");
        }
    }
}
