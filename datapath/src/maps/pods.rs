//! Where this node's pods are: `pods_v4` and `pods_v6` as one map keyed by IP address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use margay_abi::{PodInfo, map_name};

use super::{MapError, Opener, Table};
use crate::pins::Pins;

/// The pods that the programs know. A pod without an entry sends nothing (every packet of its is a
/// spoofed one), and what is sent to it takes the host's stack.
#[derive(Debug)]
pub struct Pods {
    v4: Table<[u8; 4], PodInfo>,
    v6: Table<[u8; 16], PodInfo>,
}

impl Pods {
    pub(super) fn new(v4: Table<[u8; 4], PodInfo>, v6: Table<[u8; 16], PodInfo>) -> Self {
        Self { v4, v6 }
    }

    /// Opens the maps that are pinned below `root`, whichever build of this ABI version made them;
    /// `None` where none did. For a DEL that finds another build's programs, or none.
    pub fn open(root: &Path) -> Result<Option<Self>, MapError> {
        // Maps are pinned beside the builds: the path does not name one.
        let pins = Pins::new(root, "");
        let mut opener = Opener { pins: &pins, ids: Vec::new() };
        let (v4, v6) = (opener.table(map_name::PODS_V4)?, opener.table(map_name::PODS_V6)?);
        Ok(v4.zip(v6).map(|(v4, v6)| Self::new(v4, v6)))
    }

    /// Writes the pod's entry, over any that the address has.
    ///
    /// # Errors
    /// [`MapError::Full`] names the map that has no room left.
    pub fn insert(&self, address: IpAddr, pod: &PodInfo) -> Result<(), MapError> {
        match address {
            IpAddr::V4(v4) => self.v4.insert(v4.octets(), *pod),
            IpAddr::V6(v6) => self.v6.insert(v6.octets(), *pod),
        }
    }

    /// The pod's entry, if there is one.
    pub fn get(&self, address: IpAddr) -> Result<Option<PodInfo>, MapError> {
        match address {
            IpAddr::V4(v4) => self.v4.get(v4.octets()),
            IpAddr::V6(v6) => self.v6.get(v6.octets()),
        }
    }

    /// Removes the pod's entry; `false` if there was none.
    pub fn remove(&self, address: IpAddr) -> Result<bool, MapError> {
        match address {
            IpAddr::V4(v4) => self.v4.remove(v4.octets()),
            IpAddr::V6(v6) => self.v6.remove(v6.octets()),
        }
    }

    /// How many entries there is room for, of a family.
    #[must_use]
    pub fn capacity(&self, ipv4: bool) -> u32 {
        if ipv4 { self.v4.max_entries() } else { self.v6.max_entries() }
    }

    /// Every entry. One that comes or goes during the walk may be missed.
    pub fn entries(&self) -> Result<BTreeMap<IpAddr, PodInfo>, MapError> {
        let mut entries = BTreeMap::new();
        self.v4.for_each(|address, pod| {
            entries.insert(Ipv4Addr::from(address).into(), pod);
        })?;
        self.v6.for_each(|address, pod| {
            entries.insert(Ipv6Addr::from(address).into(), pod);
        })?;
        Ok(entries)
    }
}
