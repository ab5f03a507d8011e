//! The pinned maps: every map static of the object, and the look-ups that the hooks make in them.
//!
//! Names, keys and values are those of `margay_abi`; the loader may change the number of entries.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
    programs::TcContext,
};
use margay_abi::{
    Counter, DEFAULT_MAX_FLOWS, DEFAULT_MAX_PODS, Flow, FlowKeyV4, FlowKeyV6, MAX_REMOTES, Overlay,
    PodInfo, Remote, Settings, Traffic,
    event::{Interest, MAX_REPORTED, Quota, tail_call},
};

use crate::{
    ip::{Ipv4, Ipv6},
    packet::Skb,
    report::Interested,
};

type Pods<A> = HashMap<A, PodInfo, { DEFAULT_MAX_PODS as usize }, { BPF_F_NO_PREALLOC as usize }>;
type Flows<K> = LruHashMap<K, Flow, { DEFAULT_MAX_FLOWS as usize }>;

#[btf_map(name = "pods_v4")]
static PODS_V4: Pods<[u8; 4]> = Pods::new();

#[btf_map(name = "pods_v6")]
static PODS_V6: Pods<[u8; 16]> = Pods::new();

#[btf_map(name = "flows_v4")]
static FLOWS_V4: Flows<FlowKeyV4> = Flows::new();

#[btf_map(name = "flows_v6")]
static FLOWS_V6: Flows<FlowKeyV6> = Flows::new();

#[btf_map(name = "stats")]
static STATS: PerCpuArray<Traffic, { Counter::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

type Remotes<A> = LpmTrie<A, Remote, { MAX_REMOTES as usize }>;

#[btf_map(name = "remote_v4")]
static REMOTE_V4: Remotes<[u8; 4]> = Remotes::new();

#[btf_map(name = "remote_v6")]
static REMOTE_V6: Remotes<[u8; 16]> = Remotes::new();

#[btf_map(name = "overlay")]
static OVERLAY: Array<Overlay, 1> = Array::new();

#[btf_map(name = "tail_calls")]
static TAIL_CALLS: ProgramArray<{ tail_call::COUNT as usize }> = ProgramArray::new();

/// Leaves the packet to the program `pod_to_node`. Returns if the node has none.
#[inline(always)]
pub(crate) fn continue_in_pod_to_node(context: &TcContext) {
    // SAFETY: nothing on this run's stack has to be dropped, and both programs are classifiers.
    unsafe { TAIL_CALLS.tail_call(context, tail_call::POD_TO_NODE) };
}

/// Leaves the packet to whoever listens, from the reporter in `first` on; each goes on in the next. Returns
/// where there is none.
#[inline(always)]
pub(crate) fn continue_in_reporters(context: &TcContext, first: u32) {
    let mut slot = first;
    while slot < tail_call::REPORTERS.end {
        Skb::new(context).set_reporter(slot);
        // SAFETY: as in `continue_in_pod_to_node`.
        unsafe { TAIL_CALLS.tail_call(context, slot) };
        slot += 1;
    }
}

/// The pods and flows of one address family.
pub(crate) trait Tables<H: crate::ip::Header> {
    /// Where `address` is, if it is a pod on this node.
    fn pod(&self, address: &H::Address) -> Option<&PodInfo>;
    /// What is known of a flow, by its canonical key: one of
    /// [`margay_abi::flow_verdict`].
    fn flow(&self, key: &H::Key) -> Option<u8>;
    /// Remembers `verdict` for a flow, both ways. A full table forgets another one; `None` if this one
    /// cannot be remembered. The stack then takes the flow, which is slower and right.
    fn set_flow(&self, key: &H::Key, verdict: u8) -> Option<()>;
    /// Which way `address` is reached, if it is in a prefix of pods on another node.
    fn remote(&self, address: &H::Address) -> Option<&Remote>;
    /// This node's VXLAN device, if it has one.
    fn overlay(&self) -> Option<&Overlay>;
}

/// For either family alike.
#[inline(always)]
fn overlay() -> Option<&'static Overlay> {
    OVERLAY.get(0).filter(|overlay| overlay.port != [0; 2])
}

/// The maps of this object.
pub(crate) struct KernelMaps;

impl Tables<Ipv4> for KernelMaps {
    #[inline(always)]
    fn pod(&self, address: &[u8; 4]) -> Option<&PodInfo> {
        // SAFETY: the entry's memory stays valid until the program ends (RCU), and an update does
        // not change it but puts another entry in its place.
        unsafe { PODS_V4.get(address) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKeyV4) -> Option<u8> {
        // SAFETY: a single byte is copied out at once; any value of it is valid.
        unsafe { FLOWS_V4.get(key) }.map(|flow| flow.verdict)
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKeyV4, verdict: u8) -> Option<()> {
        FLOWS_V4.insert(key, Flow { verdict, reserved: [0; 3] }, 0).ok()
    }

    #[inline(always)]
    fn remote(&self, address: &[u8; 4]) -> Option<&Remote> {
        REMOTE_V4.get(&Key::new(32, *address))
    }

    #[inline(always)]
    fn overlay(&self) -> Option<&Overlay> {
        overlay()
    }
}

impl Tables<Ipv6> for KernelMaps {
    #[inline(always)]
    fn pod(&self, address: &[u8; 16]) -> Option<&PodInfo> {
        // SAFETY: the entry's memory stays valid until the program ends (RCU), and an update does
        // not change it but puts another entry in its place.
        unsafe { PODS_V6.get(address) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKeyV6) -> Option<u8> {
        // SAFETY: a single byte is copied out at once; any value of it is valid.
        unsafe { FLOWS_V6.get(key) }.map(|flow| flow.verdict)
    }

    #[inline(always)]
    fn set_flow(&self, key: &FlowKeyV6, verdict: u8) -> Option<()> {
        FLOWS_V6.insert(key, Flow { verdict, reserved: [0; 3] }, 0).ok()
    }

    #[inline(always)]
    fn remote(&self, address: &[u8; 16]) -> Option<&Remote> {
        REMOTE_V6.get(&Key::new(128, *address))
    }

    #[inline(always)]
    fn overlay(&self) -> Option<&Overlay> {
        overlay()
    }
}

/// Adds a packet to the row `counter` of this CPU's `stats`.
#[inline(always)]
pub(crate) fn count(counter: u32, bytes: u32) {
    if let Some(traffic) = STATS.get_ptr_mut(counter) {
        // SAFETY: a non-null look-up points at this CPU's own row, which no other program writes
        // while this one runs on the CPU; a reader in userspace may see a row between two adds.
        unsafe {
            (*traffic).packets += 1;
            (*traffic).bytes += u64::from(bytes);
        }
    }
}

/// Whether somebody listens to events, or did so and was killed.
#[inline(always)]
pub(crate) fn is_listened_to() -> bool {
    SETTINGS.get(0).is_some_and(|settings| settings.listened_until_ns != 0)
}

/// Whether somebody listens to events at this time. If nobody has moved the end on, this is the end. One who
/// begins at this very moment may be forgotten over it, until the next renewal.
#[inline(always)]
pub(crate) fn is_listened_to_at(now_ns: u64) -> bool {
    let Some(settings) = SETTINGS.get_ptr_mut(0) else { return false };
    // SAFETY: a non-null look-up points at the one row, whose one field is an integer that is read and
    // written at once.
    unsafe {
        if now_ns < (*settings).listened_until_ns {
            return true;
        }
        (*settings).listened_until_ns = 0;
    }
    false
}

#[btf_map(name = "report_interest")]
static REPORT_INTEREST: Array<Interest, 1> = Array::new();

#[btf_map(name = "report_hosts")]
static REPORT_HOSTS: LpmTrie<[u8; 16], u32, { MAX_REPORTED as usize }> = LpmTrie::new();

#[btf_map(name = "report_links")]
static REPORT_LINKS: HashMap<u32, u32, { MAX_REPORTED as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map(name = "report_quota")]
static REPORT_QUOTA: PerCpuArray<Quota, 1> = PerCpuArray::new();

impl Interested for KernelMaps {
    #[inline(always)]
    fn interest(&self) -> Option<&Interest> {
        REPORT_INTEREST.get(0)
    }

    #[inline(always)]
    fn of_host(&self, address: &[u8; 16]) -> u32 {
        REPORT_HOSTS.get(&Key::new(128, *address)).map_or(0, |bits| *bits)
    }

    #[inline(always)]
    fn of_link(&self, ifindex: u32) -> u32 {
        // SAFETY: a whole integer is copied out at once.
        unsafe { REPORT_LINKS.get(ifindex) }.map_or(0, |bits| *bits)
    }
}

/// Whether this CPU may tell one more event at this time.
#[inline(always)]
pub(crate) fn has_quota(now_ns: u64, rate: u32) -> bool {
    let Some(quota) = REPORT_QUOTA.get_ptr_mut(0) else { return false };
    // SAFETY: a non-null look-up points at this CPU's own row. A program that interrupts this one may
    // count an event too many or too few.
    unsafe { (*quota).admits(now_ns, rate) }
}

/// The time since boot, in nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_ns() }
}
