//! What became of the packets: `stats`, summed over CPUs.

use std::fmt;

use aya::maps::{MapData, PerCpuArray};
use margay_abi::{Counter, Traffic, map_name};

use super::MapError;
use super::plain::Plain;

pub(crate) struct Stats(PerCpuArray<MapData, Plain<Traffic>>);

impl Stats {
    pub(super) fn new(map: PerCpuArray<MapData, Plain<Traffic>>) -> Self {
        Self(map)
    }

    /// Every counter in the order of its index.
    pub(crate) fn read(&self) -> Result<Vec<(Counter, Traffic)>, MapError> {
        Counter::ALL.into_iter().map(|counter| Ok((counter, self.sum(counter)?))).collect()
    }

    fn sum(&self, counter: Counter) -> Result<Traffic, MapError> {
        let per_cpu = self.0.get(&(counter as u32), 0).map_err(|source| MapError::Access {
            operation: "read",
            map: map_name::STATS,
            source: Box::new(source),
        })?;
        Ok(per_cpu.iter().fold(Traffic::default(), |sum, Plain(cpu)| Traffic {
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stats")
    }
}
