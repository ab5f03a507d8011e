//! Raw packet access: the only file that turns bytes of a packet into values and back, and the only
//! one that calls the helpers which act on a packet.
//!
//! Invariant: nothing is read or written outside of the packet, and what lies beyond the linear part
//! is pulled in before it is read. It knows offsets and sizes, not protocols.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH,
        BPF_FIB_LOOKUP_SRC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibLookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1 as NextHop,
    },
    helpers::{
        bpf_csum_update, bpf_fib_lookup, bpf_get_hash_recalc, bpf_get_prandom_u32,
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_set_hash,
        bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use bytemuck::{Pod, Zeroable, bytes_of, cast};
use margay_abi::{PodToNode, event::Note};

use crate::{ethernet, ip, maps, words};

/// Bytes that are pulled in at once: all that a decision reads of a packet without extension headers.
/// Ethernet, IPv6, ICMPv6 and the IPv6 header and ports that an ICMPv6 error quotes.
const MAX_HEADERS: u32 = 14 + 40 + 8 + 40 + 8;

/// A packet at a TC hook, from its Ethernet header on.
pub(crate) trait Packet {
    /// Bytes of the whole packet, which may be a GSO packet of many segments.
    fn len(&self) -> u32;
    /// Payload bytes of each segment of a GSO packet, otherwise 0.
    fn gso_size(&self) -> u32;
    /// Interface whose hook it is at.
    fn ifindex(&self) -> u32;
    /// Whether a VLAN tag travels beside the bytes.
    fn has_vlan_tag(&self) -> bool;
    /// The flow hash that travels beside the bytes, 0 if there is none yet.
    fn flow_hash(&self) -> u32;
    /// Replaces it. The host's stack, whatever it makes of the packet's addresses, leaves it alone.
    fn set_flow_hash(&mut self, hash: u32);

    /// The value at `offset`, or `None` if the packet ends before it does.
    fn read<T: Pod>(&self, offset: usize) -> Option<T>;
    /// Overwrites bytes that a [`read`](Self::read) has found. `None` if they cannot be written.
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()>;
    /// Overwrites the packet's beginning. The slow way, for whole answers.
    fn overwrite<T: Pod>(&mut self, frame: &T) -> Option<()>;
    /// Tells a checksum over the whole packet, if the sender's driver left one, that 16-bit words
    /// of it have changed by `difference` (one's complement, network byte order).
    fn adjust_checksum(&mut self, difference: [u8; 2]);
    /// Makes up for a 16-bit word of the transport header that has changed, in the checksum at
    /// `offset`, unless that is still to be filled in.
    fn adjust_transport_checksum(&mut self, offset: usize, before: [u8; 2], after: [u8; 2]);

    /// Leaves beside it that its flow has got a verdict, for the end of the hook.
    fn note_verdict(&self, was: u8, is: u8);
    /// Whether somebody will read it at the end of the hook, to tell of that verdict.
    fn is_awaited(&self) -> bool;

    /// Whether its Ethernet address is that of the interface that it came in by.
    fn is_for_this_host(&self) -> bool;
    /// Marks it as on its way past the stack, for the hook of the interface that it is redirected to.
    fn mark_as_sent(&mut self);
    /// Whether it is marked so.
    fn is_sent(&self) -> bool;
    /// Has the TC action "redirect" send it out by an interface.
    fn redirect(&self, ifindex: u32);
    /// Has the TC action "redirect" send it where the host's routes do, by its addresses of four or
    /// sixteen bytes and its longest piece; the kernel puts the next hop's MAC address in. `None` if it
    /// is not for anybody to forward as it is.
    fn redirect_by_route<A: Pod>(&self, src: &A, dst: &A, longest: u32) -> Option<()>;

    /// The hash of its flow, which the kernel works out where nobody has.
    fn computed_hash(&self) -> u32;
    /// The way that a packet of UDP from this node's stack to `dst` takes by the host's routes, from and to
    /// these `ports` (network byte order), if `longest` bytes go that way at once.
    fn way_from_here(&self, dst: &[u8; 4], ports: [[u8; 2]; 2], longest: u32) -> Option<WayOut>;
    /// Makes room for `bytes` of VXLAN's headers over IPv4 behind its Ethernet header. `None` if that
    /// cannot be; then it is as it was.
    fn make_room_for_vxlan(&mut self, bytes: usize) -> Option<()>;
    /// Has the TC action "redirect" send it there; the kernel puts the MAC addresses in.
    fn redirect_by(&self, hop: &Hop);
    /// Any number.
    fn random(&self) -> u16;

    /// The TC action that delivers it into the namespace behind the host veth `ifindex`.
    fn redirect_peer(&self, ifindex: u32) -> i32;
    /// The TC action that delivers it into the namespace that it came from, as meant for nobody else.
    fn redirect_back(&self) -> i32;
}

/// The way of an IPv4 packet that begins on this node.
#[derive(Clone, Copy)]
pub(crate) struct WayOut {
    /// The source that the kernel chooses.
    pub(crate) src: [u8; 4],
    pub(crate) hop: Hop,
}

/// Where a packet goes next, as the kernel has said it.
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    pub(crate) ifindex: u32,
    pub(crate) family: u32,
    pub(crate) address: [u32; 4],
}

/// What marks a packet (`skb->cb`), which nothing between a redirect and the hook that it leads to
/// touches. What comes from the stack has left there what that knew of its IP header: in the second
/// word lengths of options, 40 at most (`inet_skb_parm`), or offsets of extension headers, which are
/// even (`inet6_skb_parm`).
const SENT: [u32; 2] = [u32::from_ne_bytes(*b"mgy\0"), u32::MAX];
/// Words of `skb->cb` that reporters are told by; the two before are [`SENT`]'s and [`PodToNode`]'s.
const NOTE: usize = 2;
const ACTION: usize = 3;
const REPORTER: usize = 4;
/// What a packet is whose Ethernet address is the receiver's (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// The interface that packets of the host's own come from to its routes (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The packet that the kernel runs the program on.
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self { raw: context.skb.skb }
    }

    /// What another program has left beside the packet for this one.
    #[inline(always)]
    pub(crate) fn notes(&self) -> PodToNode {
        // SAFETY: `raw` is the context of this run, and its fields are plain integers.
        let [reason, sender_flags, ..] = unsafe { (*self.raw).cb };
        PodToNode { reason, sender_flags }
    }

    #[inline(always)]
    pub(crate) fn set_notes(&mut self, notes: PodToNode) {
        let PodToNode { reason, sender_flags } = notes;
        // SAFETY: as in `notes`; programs at this hook may write these fields.
        unsafe {
            (*self.raw).cb[0] = reason;
            (*self.raw).cb[1] = sender_flags;
        }
    }

    /// What is to be told of it. What has not been cleared may be anything.
    #[inline(always)]
    pub(crate) fn note(&self) -> Note {
        // SAFETY: as in `notes`.
        cast(unsafe { (*self.raw).cb[NOTE] })
    }

    /// Replaces it, beside the words of [`notes`](Self::notes) and of [`is_sent`](Packet::is_sent).
    #[inline(always)]
    pub(crate) fn set_note(&self, note: Note) {
        // SAFETY: as in `set_notes`.
        unsafe { (*self.raw).cb[NOTE] = cast(note) };
    }

    /// The TC action that a reporter ends with.
    #[inline(always)]
    pub(crate) fn action(&self) -> i32 {
        // SAFETY: as in `notes`.
        unsafe { (*self.raw).cb[ACTION] }.cast_signed()
    }

    #[inline(always)]
    pub(crate) fn set_action(&self, action: i32) {
        // SAFETY: as in `set_notes`.
        unsafe { (*self.raw).cb[ACTION] = action.cast_unsigned() };
    }

    /// The slot of the reporter that has the packet.
    #[inline(always)]
    pub(crate) fn reporter(&self) -> u32 {
        // SAFETY: as in `notes`.
        unsafe { (*self.raw).cb[REPORTER] }
    }

    #[inline(always)]
    pub(crate) fn set_reporter(&self, slot: u32) {
        // SAFETY: as in `set_notes`.
        unsafe { (*self.raw).cb[REPORTER] = slot };
    }

    /// Address of `size` bytes at `offset` if they are in the linear part.
    #[inline(always)]
    fn linear(&self, offset: usize, size: usize) -> Option<*mut u8> {
        let [data, data_end] = self.linear_bounds();
        let start = data + offset;
        (start + size <= data_end).then_some(start as *mut u8)
    }

    /// First address of the linear part, and the one behind it, as of this moment: helpers move both.
    ///
    /// In assembly, since the verifier has to see two loads into whole registers, which it makes
    /// pointers of. What the compiler makes of a 32-bit field that is widened afterwards is an
    /// arithmetic instruction on a pointer in one place, and in another a plain number.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn linear_bounds(&self) -> [usize; 2] {
        let data: usize;
        let data_end: usize;
        // SAFETY: `raw` is the context of this run, and both loads are of a field of it.
        unsafe {
            core::arch::asm!(
                "{data} = *(u32 *)({raw} + {data_field})",
                "{data_end} = *(u32 *)({raw} + {data_end_field})",
                raw = in(reg) self.raw,
                data = out(reg) data,
                data_end = lateout(reg) data_end,
                data_field = const core::mem::offset_of!(__sk_buff, data),
                data_end_field = const core::mem::offset_of!(__sk_buff, data_end),
                options(readonly, nostack, preserves_flags),
            );
        }
        [data, data_end]
    }

    #[cfg(not(target_arch = "bpf"))]
    fn linear_bounds(&self) -> [usize; 2] {
        unreachable!("no packet comes to the host's build")
    }

    /// Brings all headers that are read as a rule into the linear part, and what is before `end`.
    #[inline(never)]
    fn pull_headers(&self, end: u32) {
        let len = self.len().min(MAX_HEADERS.max(end));
        TcContext::new(self.raw).pull_data(len).ok();
    }
}

/// The same offset, below 16 KiB, of which the verifier forgets what it knows: paths to one place that
/// differ only in it become one path, which is followed once.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn forgotten(mut offset: usize) -> usize {
    // Turning bytes round is what the verifier keeps no range over (`check_alu_op`, `BPF_END`).
    // SAFETY: changes one register, and turning the lower two bytes round twice changes nothing.
    unsafe {
        core::arch::asm!(
            "{offset} = be16 {offset}",
            "{offset} = be16 {offset}",
            offset = inout(reg) offset,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    offset & 0x3fff
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) fn forgotten(offset: usize) -> usize {
    offset
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: `raw` is the context of this run, and its fields are plain integers.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).ifindex }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).hash }
    }

    #[inline(always)]
    fn set_flow_hash(&mut self, hash: u32) {
        // SAFETY: `raw` is the context of this run; the helper stores an integer beside the packet.
        unsafe { bpf_set_hash(self.raw, hash) };
    }

    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let start = match self.linear(offset, size_of::<T>()) {
            Some(start) => start,
            None => {
                let end = (offset + size_of::<T>()) as u32;
                if self.len() < end {
                    return None;
                }
                self.pull_headers(end);
                self.linear(offset, size_of::<T>())?
            }
        };
        // SAFETY: `linear` has shown that `start` and the `size_of::<T>()` bytes from it are inside
        // of the linear part, and nothing has moved it since.
        Some(unsafe { words::load(start) })
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let start = self.linear(offset, size_of::<T>())?;
        // SAFETY: as in `read`; the kernel has made the linear part of a cloned packet writable
        // before it ran a program that writes (`bpf_unclone_prologue`).
        unsafe { words::store(start, value) };
        Some(())
    }

    #[inline(always)]
    fn overwrite<T: Pod>(&mut self, frame: &T) -> Option<()> {
        let bytes = bytes_of(frame);
        // SAFETY: `raw` is the context of this run, and the helper copies `bytes.len()` bytes out
        // of `bytes`; it checks the packet's end by itself.
        let result = unsafe {
            bpf_skb_store_bytes(self.raw.cast(), 0, bytes.as_ptr().cast(), bytes.len() as u32, 0)
        };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn adjust_checksum(&mut self, difference: [u8; 2]) {
        // SAFETY: `raw` is the context of this run. The helper refuses a packet without such a
        // checksum, and then there is nothing to adjust.
        unsafe { bpf_csum_update(self.raw, u32::from(u16::from_ne_bytes(difference))) };
    }

    #[inline(always)]
    fn adjust_transport_checksum(&mut self, offset: usize, before: [u8; 2], after: [u8; 2]) {
        let [before, after] = [before, after].map(|word| u64::from(u16::from_ne_bytes(word)));
        // SAFETY: `raw` is the context of this run; the helper checks the packet's end by itself,
        // and fails only there.
        unsafe { bpf_l4_csum_replace(self.raw, offset as u32, before, after, 2) };
    }

    #[inline(always)]
    fn note_verdict(&self, was: u8, is: u8) {
        self.set_note(Note { was, is, ..Note::zeroed() });
    }

    #[inline(always)]
    fn is_awaited(&self) -> bool {
        self.note().is != 0 && maps::is_listened_to()
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        // SAFETY: as in `len`.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    #[inline(never)]
    fn redirect_by_route<A: Pod>(&self, src: &A, dst: &A, longest: u32) -> Option<()> {
        // SAFETY: all fields are integers, of which zero is one.
        let mut query: FibLookup = unsafe { core::mem::zeroed() };
        query.family = if size_of::<A>() == 4 { AF_INET } else { AF_INET6 };
        query.ifindex = self.ifindex();
        query.__bindgen_anon_1.tot_len = longest.min(u32::from(u16::MAX)) as u16;
        query.__bindgen_anon_3.ipv6_src = address_words(src);
        query.__bindgen_anon_4.ipv6_dst = address_words(dst);
        let len = size_of::<FibLookup>() as i32;
        // SAFETY: `raw` is the context of this run, and `query` is what the helper takes for it.
        let result = unsafe { bpf_fib_lookup(self.raw.cast(), &raw mut query, len, 0) } as u32;
        // Without the neighbour's MAC address as well: that is asked for on the way.
        if result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH {
            return None;
        }
        self.redirect_by(&Hop::of(&query));
        Some(())
    }

    #[inline(always)]
    fn computed_hash(&self) -> u32 {
        // SAFETY: `raw` is the context of this run.
        unsafe { bpf_get_hash_recalc(self.raw) }
    }

    #[inline(never)]
    fn way_from_here(
        &self,
        dst: &[u8; 4],
        [src_port, dst_port]: [[u8; 2]; 2],
        longest: u32,
    ) -> Option<WayOut> {
        // SAFETY: all fields are integers, of which zero is one.
        let mut query: FibLookup = unsafe { core::mem::zeroed() };
        query.family = AF_INET;
        query.ifindex = LOOPBACK;
        // Rules ask for these, and ways of equal cost are chosen by them.
        query.l4_protocol = ip::protocol::UDP;
        query.sport = u16::from_ne_bytes(src_port);
        query.dport = u16::from_ne_bytes(dst_port);
        query.__bindgen_anon_1.tot_len = longest.min(u32::from(u16::MAX)) as u16;
        query.__bindgen_anon_4.ipv6_dst = address_words(dst);
        let len = size_of::<FibLookup>() as i32;
        // Linux 6.7 and 6.3; others refuse a flag that they do not know.
        let flags = BPF_FIB_LOOKUP_SRC | BPF_FIB_LOOKUP_SKIP_NEIGH;
        // SAFETY: `raw` is the context of this run, and `query` is what the helper takes for it.
        let result = unsafe { bpf_fib_lookup(self.raw.cast(), &raw mut query, len, flags) } as u32;
        if result != BPF_FIB_LKUP_RET_SUCCESS {
            return None;
        }
        Some(WayOut {
            // SAFETY: the union's fields are integers that share their beginning.
            src: unsafe { query.__bindgen_anon_3.ipv4_src }.to_ne_bytes(),
            hop: Hop::of(&query),
        })
    }

    #[inline(always)]
    fn make_room_for_vxlan(&mut self, bytes: usize) -> Option<()> {
        // An Ethernet header begins the packet inside, and the size of its segments stays.
        const FLAGS: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
            | BPF_F_ADJ_ROOM_FIXED_GSO) as u64
            | (ethernet::HEADER_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        // SAFETY: `raw` is the context of this run; the helper refuses before it changes anything.
        let result =
            unsafe { bpf_skb_adjust_room(self.raw, bytes as i32, BPF_ADJ_ROOM_MAC, FLAGS) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn redirect_by(&self, hop: &Hop) {
        let mut to = bpf_redir_neigh {
            nh_family: hop.family,
            __bindgen_anon_1: NextHop { ipv6_nh: hop.address },
        };
        // SAFETY: the helper reads `to`; the kernel checks the interface when it redirects.
        unsafe { bpf_redirect_neigh(hop.ifindex, &raw mut to, size_of_val(&to) as i32, 0) };
    }

    #[inline(always)]
    fn random(&self) -> u16 {
        // SAFETY: takes nothing and returns an integer.
        unsafe { bpf_get_prandom_u32() as u16 }
    }

    #[inline(always)]
    fn mark_as_sent(&mut self) {
        let [first, second] = SENT;
        // SAFETY: as in `notes`; programs at this hook may write these fields.
        unsafe {
            (*self.raw).cb[0] = first;
            (*self.raw).cb[1] = second;
        }
    }

    #[inline(always)]
    fn is_sent(&self) -> bool {
        // SAFETY: as in `notes`.
        let [first, second, ..] = unsafe { (*self.raw).cb };
        [first, second] == SENT
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) {
        // SAFETY: takes two integers; the kernel checks the interface when it redirects.
        unsafe { bpf_redirect(ifindex, 0) };
    }

    #[inline(always)]
    fn redirect_peer(&self, ifindex: u32) -> i32 {
        // SAFETY: takes two integers; the kernel checks the interface when it redirects.
        unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn redirect_back(&self) -> i32 {
        // By a frame for everybody it would be hearsay to the pod (`arp_process`), unless the kernel scrubs
        // what it redirects, as newer ones do.
        if !self.is_for_this_host() {
            // SAFETY: `raw` is the context of this run; the helper stores an integer beside the packet.
            unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        }
        self.redirect_peer(self.ifindex())
    }
}

impl Hop {
    /// What a look-up has found.
    #[inline(always)]
    fn of(query: &FibLookup) -> Self {
        Self {
            ifindex: query.ifindex,
            family: query.family.into(),
            // SAFETY: the union's fields are integers that share their beginning.
            address: unsafe { query.__bindgen_anon_4.ipv6_dst },
        }
    }
}

/// An address of four or sixteen bytes as the kernel's unions have it.
#[inline(always)]
fn address_words<A: Pod>(address: &A) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes_of(address).chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}
