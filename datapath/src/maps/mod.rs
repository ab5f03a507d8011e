//! The pinned maps, typed.
//!
//! Invariant: a map is opened only if the kernel's type, key size and value size are those of the
//! ABI; its number of entries is whatever it was created with. Everything here is one or a few
//! system calls, synchronous, and safe to call from several threads.

mod flows;
mod layout;
mod plain;
mod pods;
mod raw;
mod remotes;
mod reporter;
mod stats;
mod table;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::ProgramFd;
use margay_abi::event::tail_call;
use margay_abi::{Overlay, Settings, map_name};

pub use flows::{FlowEntry, Flows};
pub(crate) use layout::{LAYOUTS, Layout};
pub use pods::Pods;
pub(crate) use raw::RawTable;
pub use remotes::Remotes;
pub(crate) use reporter::ReporterMaps;
pub(crate) use stats::Stats;
pub(crate) use table::Slot;

use crate::ProgramId;
use crate::bound::Bound;
use crate::load::LoadOptions;
use crate::pins::Pins;
use plain::Plain;
use table::Table;

/// Reading or writing a map failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The map holds as many entries as it was created for.
    #[error("map {map} is full: all of its {max_entries} entries are taken")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// What it was created with.
        max_entries: u32,
    },
    /// The pin cannot be opened.
    #[error("open map {map}")]
    Open {
        /// Name of the map.
        map: &'static str,
        #[source]
        /// What the kernel said.
        source: Box<aya::maps::MapError>,
    },
    /// The pinned map is not the one this build knows by that name.
    #[error("pinned map {map} has {property} {found}, but this build needs {expected}")]
    Layout {
        /// Name of the map.
        map: &'static str,
        /// `type`, `key size` or `value size`.
        property: &'static str,
        /// The kernel's number for it.
        found: u32,
        /// The ABI's number for it.
        expected: u32,
    },
    /// A system call on an open map failed.
    #[error("{operation} map {map}")]
    Access {
        /// What was tried: `read`, `write`, `remove from` or `walk`.
        operation: &'static str,
        /// Name of the map.
        map: &'static str,
        #[source]
        /// What the kernel said.
        source: Box<aya::maps::MapError>,
    },
}

/// All maps of one ABI version, open.
pub(crate) struct Maps {
    pub(crate) pods: Pods,
    pub(crate) flows: Flows,
    pub(crate) stats: Stats,
    pub(crate) settings: Slot<Settings>,
    pub(crate) remotes: Remotes,
    pub(crate) overlay: Slot<Overlay>,
    pub(crate) tail_calls: Mutex<ProgramArray<MapData>>,
    /// Kernel numbers of the maps, in the order of [`LAYOUTS`].
    ids: Vec<u32>,
}

impl Maps {
    /// Opens every pinned map; `None` if one is missing.
    pub(crate) fn open(pins: &Pins) -> Result<Option<Self>, MapError> {
        let mut opener = Opener { pins, ids: Vec::with_capacity(LAYOUTS.len()) };
        let (Some(pods_v4), Some(pods_v6), Some(flows_v4), Some(flows_v6)) = (
            opener.table(map_name::PODS_V4)?,
            opener.table(map_name::PODS_V6)?,
            opener.table(map_name::FLOWS_V4)?,
            opener.table(map_name::FLOWS_V6)?,
        ) else {
            return Ok(None);
        };
        let (Some(stats), Some(settings)) =
            (opener.map(map_name::STATS)?, opener.slot(map_name::SETTINGS)?)
        else {
            return Ok(None);
        };
        let (Some(remotes), Some(overlay)) =
            (Remotes::open(&mut opener)?, opener.slot(map_name::OVERLAY)?)
        else {
            return Ok(None);
        };
        let Some(tail_calls) = opener.map(map_name::TAIL_CALLS)? else { return Ok(None) };
        Ok(Some(Self {
            pods: Pods::new(pods_v4, pods_v6),
            flows: Flows::new(flows_v4, flows_v6),
            stats: Stats::new(open_error(map_name::STATS, stats.try_into())?),
            settings,
            remotes,
            overlay,
            tail_calls: Mutex::new(open_error(map_name::TAIL_CALLS, tail_calls.try_into())?),
            ids: opener.ids,
        }))
    }
}

impl Maps {
    /// Whether these, the numbers of the maps that programs use, are all of those pinned but some that
    /// they have nothing to do with.
    pub(crate) fn are_used(&self, used: &[u32], but: &[&str]) -> bool {
        let ids = LAYOUTS.iter().zip(&self.ids);
        ids.filter(|(layout, _)| !but.contains(&layout.name)).all(|(_, id)| used.contains(id))
    }

    /// Has `from_pod` go on in a program, or by itself again.
    pub(crate) fn set_node_program(&self, program: Option<&ProgramFd>) -> Result<(), MapError> {
        // As in `table`: the state behind the lock is the kernel's.
        let mut slots = self.tail_calls.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match program {
            Some(program) => slots.set(tail_call::POD_TO_NODE, program, 0),
            None => slots.clear_index(&tail_call::POD_TO_NODE),
        };
        match outcome {
            Err(error) if program.is_none() && errno(&error) == Some(libc::ENOENT) => Ok(()),
            outcome => outcome.map_err(|source| MapError::Access {
                operation: "write",
                map: map_name::TAIL_CALLS,
                source: Box::new(source),
            }),
        }
    }
}

/// The maps that programs write, without pins: a rehearsal's own.
pub(crate) struct OwnMaps {
    pub(crate) flows: Flows,
    pub(crate) stats: Stats,
    pub(crate) tail_calls: MapData,
}

impl OwnMaps {
    /// What they are called.
    pub(crate) const NAMES: [&str; 4] =
        [map_name::FLOWS_V4, map_name::FLOWS_V6, map_name::STATS, map_name::TAIL_CALLS];

    pub(crate) fn of(bound: &mut Bound) -> Result<Self, MapError> {
        let mut take = |name| {
            let missing = || aya::maps::MapError::InvalidName { name: String::from(name) };
            open_error(name, bound.take_map(name).ok_or_else(missing))
        };
        let typed = |name, data| open_error(name, aya::maps::Map::from_map_data(data));
        let [flows_v4, flows_v6, stats, _] = Self::NAMES;
        let v4 = open_error(flows_v4, typed(flows_v4, take(flows_v4)?)?.try_into())?;
        let v6 = open_error(flows_v6, typed(flows_v6, take(flows_v6)?)?.try_into())?;
        let counters = open_error(stats, typed(stats, take(stats)?)?.try_into())?;
        Ok(Self {
            flows: Flows::new(Table::new(flows_v4, v4), Table::new(flows_v6, v6)),
            stats: Stats::new(counters),
            tail_calls: take(map_name::TAIL_CALLS)?,
        })
    }
}

/// A pinned map, as it is.
pub(crate) fn open_data(name: &'static str, pins: &Pins) -> Result<MapData, MapError> {
    open_error(name, MapData::from_pin(pins.map(name)))
}

/// What all programs are told.
pub(crate) fn open_settings(pins: &Pins) -> Result<Slot<Settings>, MapError> {
    let name = map_name::SETTINGS;
    let map = open_error(name, aya::maps::Map::from_map_data(open_data(name, pins)?))?;
    Ok(Slot::new(name, open_error(name, map.try_into())?))
}

/// Whether it is this map that is pinned.
pub(crate) fn is_pinned(name: &'static str, pins: &Pins, map: &MapData) -> Result<bool, MapError> {
    let Some(pinned) = open_pin(name, &pins.map(name))? else { return Ok(false) };
    Ok(open_error(name, pinned.info())?.id() == open_error(name, map.info())?.id())
}

/// What the kernel has refused to do with an open map.
pub(crate) fn access_error(
    operation: &'static str,
    map: &'static str,
    io_error: std::io::Error,
) -> MapError {
    let source = aya::sys::SyscallError { call: "bpf", io_error };
    MapError::Access { operation, map, source: Box::new(source.into()) }
}

/// The program that `from_pod` goes on in, if there is one.
pub(crate) fn pinned_node_program(pins: &Pins) -> Result<Option<ProgramId>, MapError> {
    let name = map_name::TAIL_CALLS;
    let Some(slots) = RawTable::open(name, &pins.map(name))? else { return Ok(None) };
    let id = slots.get(&tail_call::POD_TO_NODE.to_ne_bytes())?;
    Ok(id.and_then(|id| Some(ProgramId(u32::from_ne_bytes(id.try_into().ok()?)))))
}

struct Opener<'a> {
    pins: &'a Pins,
    ids: Vec<u32>,
}

impl Opener<'_> {
    fn table<K: bytemuck::Pod, V: bytemuck::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<Table<K, V>>, MapError> {
        let Some(map) = self.map(name)? else { return Ok(None) };
        Ok(Some(Table::new(name, open_error(name, map.try_into())?)))
    }

    fn slot<V: bytemuck::Pod>(&mut self, name: &'static str) -> Result<Option<Slot<V>>, MapError> {
        let Some(map) = self.map(name)? else { return Ok(None) };
        let array: Array<MapData, Plain<V>> = open_error(name, map.try_into())?;
        Ok(Some(Slot::new(name, array)))
    }

    fn map(&mut self, name: &'static str) -> Result<Option<aya::maps::Map>, MapError> {
        let Some(data) = open_pin(name, &self.pins.map(name))? else { return Ok(None) };
        let info = open_error(name, data.info())?;
        Layout::of(name).check(&info)?;
        self.ids.push(info.id());
        open_error(name, aya::maps::Map::from_map_data(data)).map(Some)
    }
}

/// Fails if a map is pinned that a build with this ABI could not share; says so if one is pinned
/// with another size than `options` ask for, since it stays as it is.
pub(crate) fn check_pinned(pins: &Pins, options: &LoadOptions) -> Result<(), MapError> {
    for layout in &LAYOUTS {
        let Some(data) = open_pin(layout.name, &pins.map(layout.name))? else { continue };
        let info = open_error(layout.name, data.info())?;
        layout.check(&info)?;
        let wanted = layout.max_entries(options);
        if info.max_entries() != wanted {
            tracing::warn!(
                map = layout.name,
                entries = info.max_entries(),
                configured = wanted,
                "the pinned map keeps the size it was created with"
            );
        }
    }
    Ok(())
}

/// Fails if a map of this ABI version is missing or not what this build knows by its name.
pub(crate) fn check_layouts(pins: &Pins) -> Result<(), MapError> {
    for layout in &LAYOUTS {
        let data = open_data(layout.name, pins)?;
        layout.check(&open_error(layout.name, data.info())?)?;
    }
    Ok(())
}

fn open_pin(name: &'static str, path: &Path) -> Result<Option<MapData>, MapError> {
    match MapData::from_pin(path) {
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(None),
        other => open_error(name, other).map(Some),
    }
}

fn open_error<T>(map: &'static str, result: Result<T, aya::maps::MapError>) -> Result<T, MapError> {
    result.map_err(|source| MapError::Open { map, source: Box::new(source) })
}

/// The system call's errno, if it was a system call that failed.
fn errno(error: &aya::maps::MapError) -> Option<i32> {
    match error {
        aya::maps::MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
