//! What a frame says, read a second time and in another way than the kernel half does it.

/// EtherTypes.
pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const VLAN: u16 = 0x8100;
    pub(crate) const SERVICE_VLAN: u16 = 0x88a8;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// Bytes of the Ethernet header.
pub(crate) const ETHERNET: usize = 14;

pub(crate) fn bytes<const N: usize>(frame: &[u8], offset: usize) -> [u8; N] {
    let bytes = frame.get(offset..offset + N).expect("the frame is as long as its verdict says");
    bytes.try_into().expect("N bytes")
}

/// Two addresses in the order that they have in a flow's key.
pub(crate) fn sorted<const N: usize>(mut ends: [[u8; N]; 2]) -> [[u8; N]; 2] {
    ends.sort_unstable();
    ends
}

pub(crate) fn number(frame: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(bytes(frame, offset))
}

pub(crate) fn destination_mac(frame: &[u8]) -> [u8; 6] {
    bytes(frame, 0)
}

pub(crate) fn source_mac(frame: &[u8]) -> [u8; 6] {
    bytes(frame, 6)
}

pub(crate) fn ethertype(frame: &[u8]) -> u16 {
    number(frame, 12)
}

pub(crate) fn is_link_local(address: [u8; 16]) -> bool {
    u16::from_be_bytes([address[0], address[1]]) & 0xffc0 == 0xfe80
}

pub(crate) fn is_multicast(address: [u8; 16]) -> bool {
    address[0] == 0xff
}

/// The Internet checksum over bytes that include one: 0 if it is right.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let words = all.chunks(2).map(|word| match word {
        [high, low] => u64::from(*high) << 8 | u64::from(*low),
        word => u64::from(word[0]) << 8,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
