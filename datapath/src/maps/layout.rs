//! What every map looks like to the kernel, from the ABI's types.

use aya::maps::MapInfo;
use aya::maps::lpm_trie::Key;
use margay_abi::{
    Counter, Flow, FlowKeyV4, FlowKeyV6, MAX_REMOTES, Overlay, PodInfo, Remote, Settings, Traffic,
    event::tail_call, map_name,
};

use super::MapError;
use crate::load::LoadOptions;

/// Map types, `enum bpf_map_type` in `include/uapi/linux/bpf.h`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;

/// One map of the ABI.
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    map_type: u32,
    key_bytes: usize,
    value_bytes: usize,
    entries: Entries,
}

#[derive(Clone, Copy)]
enum Entries {
    MaxPods,
    MaxFlows,
    Fixed(u32),
}

/// Every map of the ABI.
pub(crate) const LAYOUTS: [Layout; map_name::ALL.len()] = [
    layout::<[u8; 4], PodInfo>(map_name::PODS_V4, HASH, Entries::MaxPods),
    layout::<[u8; 16], PodInfo>(map_name::PODS_V6, HASH, Entries::MaxPods),
    layout::<FlowKeyV4, Flow>(map_name::FLOWS_V4, LRU_HASH, Entries::MaxFlows),
    layout::<FlowKeyV6, Flow>(map_name::FLOWS_V6, LRU_HASH, Entries::MaxFlows),
    layout::<u32, Traffic>(map_name::STATS, PERCPU_ARRAY, Entries::Fixed(Counter::COUNT)),
    layout::<u32, Settings>(map_name::SETTINGS, ARRAY, Entries::Fixed(1)),
    layout::<Key<[u8; 4]>, Remote>(map_name::REMOTE_V4, LPM_TRIE, Entries::Fixed(MAX_REMOTES)),
    layout::<Key<[u8; 16]>, Remote>(map_name::REMOTE_V6, LPM_TRIE, Entries::Fixed(MAX_REMOTES)),
    layout::<u32, Overlay>(map_name::OVERLAY, ARRAY, Entries::Fixed(1)),
    layout::<u32, u32>(map_name::TAIL_CALLS, PROG_ARRAY, Entries::Fixed(tail_call::COUNT)),
];

const fn layout<K, V>(name: &'static str, map_type: u32, entries: Entries) -> Layout {
    Layout { name, map_type, key_bytes: size_of::<K>(), value_bytes: size_of::<V>(), entries }
}

impl Layout {
    /// # Panics
    /// If the ABI names no such map.
    pub(crate) fn of(name: &str) -> &'static Self {
        static ALL: [Layout; map_name::ALL.len()] = LAYOUTS;
        ALL.iter().find(|layout| layout.name == name).expect("a map of the ABI")
    }

    /// Entries the map is created with.
    pub(crate) fn max_entries(&self, options: &LoadOptions) -> u32 {
        match self.entries {
            Entries::MaxPods => options.max_pods,
            Entries::MaxFlows => options.max_flows,
            Entries::Fixed(entries) => entries,
        }
    }

    pub(crate) fn check(&self, info: &MapInfo) -> Result<(), MapError> {
        let found_type = info.map_type().map_or(0, |map_type| map_type as u32);
        let properties = [
            ("type", found_type, self.map_type),
            ("key size", info.key_size(), self.key_bytes as u32),
            ("value size", info.value_size(), self.value_bytes as u32),
        ];
        match properties.into_iter().find(|(_, found, expected)| found != expected) {
            Some((property, found, expected)) => {
                Err(MapError::Layout { map: self.name, property, found, expected })
            }
            None => Ok(()),
        }
    }
}
