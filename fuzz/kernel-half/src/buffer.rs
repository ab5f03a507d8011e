//! A packet in a buffer that behaves as one of the kernel's: part of it may lie beyond the linear
//! part, and a read beyond that pulls it in.
//!
//! Invariant: every access is inside of the packet, and only what has been read is written; the
//! contract of [`Packet::write`].

use std::cell::Cell;

use aya_ebpf::bindings::TC_ACT_REDIRECT;
use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use margay_abi::event::Note;

use crate::packet::{Hop, Packet, WayOut};

/// What a read pulls in at least, written down apart from the kernel half.
const PULLED_BYTES: usize = 110;

/// The interface that the host's routes lead to.
pub(crate) const UPLINK: u32 = 3;

/// What goes there at once.
const UNDERLAY_MTU: u32 = 1500;

/// This node's address there.
pub(crate) const OWN_NODE: [u8; 4] = [192, 168, 0, 8];

/// A packet at a hook.
#[derive(Clone)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ifindex: u32,
    pub(crate) gso_size: u32,
    pub(crate) has_vlan_tag: bool,
    pub(crate) flow_hash: u32,
    pub(crate) is_for_another_host: bool,
    pub(crate) has_no_route: bool,
    pub(crate) is_sent: bool,
    /// The interface that it is redirected to.
    pub(crate) redirected: Cell<Option<u32>>,
    /// What became of its flow.
    pub(crate) noted: Cell<Note>,
    /// Bytes of the linear part.
    linear: Cell<usize>,
    /// What a checksum over the whole packet was told of.
    pub(crate) adjustments: Vec<[u8; 2]>,
}

impl Buffer {
    /// A packet of interface `ifindex`, of which nothing is in the linear part.
    pub(crate) fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            gso_size: 0,
            has_vlan_tag: false,
            flow_hash: 0,
            is_for_another_host: false,
            has_no_route: false,
            is_sent: false,
            redirected: Cell::new(None),
            noted: Cell::default(),
            linear: Cell::new(0),
            adjustments: Vec::new(),
        }
    }

    /// The same packet with all of it in the linear part.
    pub(crate) fn linear(mut self) -> Self {
        self.linear = Cell::new(self.bytes.len());
        self
    }

    fn is_linear(&self, end: usize) -> bool {
        end <= self.linear.get()
    }
}

impl Packet for Buffer {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn has_vlan_tag(&self) -> bool {
        self.has_vlan_tag
    }

    fn flow_hash(&self) -> u32 {
        self.flow_hash
    }

    fn set_flow_hash(&mut self, hash: u32) {
        assert_ne!(hash, 0, "a hash that stands for none");
        self.flow_hash = hash;
    }

    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset + size_of::<T>();
        if end > self.bytes.len() {
            return None;
        }
        if !self.is_linear(end) {
            let pulled = PULLED_BYTES.max(end).min(self.bytes.len());
            self.linear.set(self.linear.get().max(pulled));
        }
        Some(pod_read_unaligned(&self.bytes[offset..end]))
    }

    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let end = offset + size_of::<T>();
        assert!(self.is_linear(end), "writes {offset}..{end} before it has read them");
        self.bytes[offset..end].copy_from_slice(bytes_of(&value));
        Some(())
    }

    fn overwrite<T: Pod>(&mut self, frame: &T) -> Option<()> {
        let new = bytes_of(frame);
        assert!(new.len() <= self.bytes.len(), "overwrites beyond the packet's end");
        self.bytes[..new.len()].copy_from_slice(new);
        Some(())
    }

    fn adjust_checksum(&mut self, difference: [u8; 2]) {
        self.adjustments.push(difference);
    }

    /// As the kernel's helper does it (RFC 1624), which fails at the packet's end.
    fn adjust_transport_checksum(&mut self, offset: usize, before: [u8; 2], after: [u8; 2]) {
        let Some(checksum) = self.bytes.get_mut(offset..offset + 2) else { return };
        let complement = |word: &[u8]| u32::from(!u16::from_be_bytes([word[0], word[1]]));
        let sum = complement(checksum) + complement(&before) + (0xffff - complement(&after));
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        checksum.copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }

    fn note_verdict(&self, was: u8, is: u8) {
        self.noted.set(Note { was, is, ..Note::default() });
    }

    fn is_awaited(&self) -> bool {
        false
    }

    fn is_for_this_host(&self) -> bool {
        !self.is_for_another_host
    }

    fn mark_as_sent(&mut self) {
        self.is_sent = true;
    }

    fn is_sent(&self) -> bool {
        self.is_sent
    }

    fn redirect(&self, ifindex: u32) {
        self.redirected.set(Some(ifindex));
    }

    fn redirect_by_route<T: Pod>(&self, _src: &T, _dst: &T, longest: u32) -> Option<()> {
        assert_ne!(longest, 0, "asks for the way of nothing");
        if self.has_no_route {
            return None;
        }
        self.redirected.set(Some(UPLINK));
        Some(())
    }

    fn computed_hash(&self) -> u32 {
        0x1234_5678
    }

    fn way_from_here(&self, _dst: &[u8; 4], _ports: [[u8; 2]; 2], longest: u32) -> Option<WayOut> {
        if self.has_no_route || longest > UNDERLAY_MTU {
            return None;
        }
        Some(WayOut { src: OWN_NODE, hop: Hop { ifindex: UPLINK, family: 2, address: [0; 4] } })
    }

    fn make_room_for_vxlan(&mut self, bytes: usize) -> Option<()> {
        assert!(self.is_linear(14), "makes room in what it has not read");
        self.bytes.splice(14..14, std::iter::repeat_n(0, bytes));
        self.linear.set(self.linear.get() + bytes);
        Some(())
    }

    fn redirect_by(&self, hop: &Hop) {
        self.redirected.set(Some(hop.ifindex));
    }

    fn random(&self) -> u16 {
        7
    }

    fn redirect_peer(&self, ifindex: u32) -> i32 {
        assert_ne!(ifindex, self.ifindex, "delivers to the pod that it came from");
        TC_ACT_REDIRECT
    }

    fn redirect_back(&self) -> i32 {
        TC_ACT_REDIRECT
    }
}
