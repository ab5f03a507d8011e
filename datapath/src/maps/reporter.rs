//! A reporter's own maps.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use margay_abi::event::{Interest, Quota, report_map};

use super::plain::Plain;
use super::{MapError, Slot, open_error};
use crate::bound::Bound;

/// What a reporter is told, and what it counts.
pub(crate) struct ReporterMaps {
    interest: Slot<Interest>,
    hosts: LpmTrie<MapData, [u8; 16], u32>,
    links: HashMap<MapData, u32, u32>,
    quota: PerCpuArray<MapData, Plain<Quota>>,
}

impl ReporterMaps {
    /// Takes them from what the reporter is bound to; to be called when it is loaded.
    pub(crate) fn of(bound: &mut Bound) -> Result<Self, MapError> {
        let mut take = |name: &'static str| {
            let missing = || aya::maps::MapError::InvalidName { name: name.to_owned() };
            let data = open_error(name, bound.take_map(name).ok_or_else(missing))?;
            open_error(name, aya::maps::Map::from_map_data(data))
        };
        let [interest, hosts, links, quota] = report_map::ALL;
        let array: Array<MapData, Plain<Interest>> =
            open_error(interest, take(interest)?.try_into())?;
        Ok(Self {
            interest: Slot::new(interest, array),
            hosts: open_error(hosts, take(hosts)?.try_into())?,
            links: open_error(links, take(links)?.try_into())?,
            quota: open_error(quota, take(quota)?.try_into())?,
        })
    }

    pub(crate) fn set_interest(&self, interest: Interest) -> Result<(), MapError> {
        self.interest.set(interest)
    }

    /// Gives the addresses of a prefix of `length` bits of their interest.
    pub(crate) fn put_host(
        &mut self,
        address: u128,
        length: u32,
        bits: u32,
    ) -> Result<(), MapError> {
        let key = Key::new(length, address.to_be_bytes());
        self.hosts.insert(&key, bits, 0).map_err(access("write", report_map::HOSTS))
    }

    pub(crate) fn put_link(&mut self, ifindex: u32, bits: u32) -> Result<(), MapError> {
        self.links.insert(ifindex, bits, 0).map_err(access("write", report_map::LINKS))
    }

    /// What the reporter has counted, of all CPUs together.
    pub(crate) fn quota(&self) -> Result<Quota, MapError> {
        let per_cpu = self.quota.get(&0, 0).map_err(access("read", report_map::QUOTA))?;
        Ok(per_cpu.iter().fold(Quota::default(), |sum, Plain(cpu)| Quota {
            all: sum.all.wrapping_add(cpu.all),
            suppressed: sum.suppressed.wrapping_add(cpu.suppressed),
            ..sum
        }))
    }
}

fn access(operation: &'static str, map: &'static str) -> impl Fn(aya::maps::MapError) -> MapError {
    move |source| MapError::Access { operation, map, source: Box::new(source) }
}
