//! A hash map and a one-element array, with this crate's errors.
//!
//! aya asks for `&mut` to write, though the kernel needs no such thing; the lock is what lets one
//! open map be written from anywhere, and is never held across more than one system call.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData};
use aya::sys::SyscallError;
use bytemuck::Pod;
use margay_failpoints as failpoints;

use super::plain::Plain;
use super::{MapError, errno};

type Plains<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;

/// A hash or LRU hash map.
pub(crate) struct Table<K, V> {
    name: &'static str,
    map: Mutex<Plains<K, V>>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn new(name: &'static str, map: Plains<K, V>) -> Self {
        Self { name, map: Mutex::new(map) }
    }

    pub(super) fn insert(&self, key: K, value: V) -> Result<(), MapError> {
        let result =
            self.before("write to").and_then(|()| self.lock().insert(Plain(key), Plain(value), 0));
        result.map_err(|error| match errno(&error) {
            Some(libc::E2BIG) => MapError::Full { map: self.name, max_entries: self.max_entries() },
            _ => self.access_error("write", error),
        })
    }

    pub(super) fn get(&self, key: K) -> Result<Option<V>, MapError> {
        match self.lock().get(&Plain(key), 0) {
            Ok(Plain(value)) => Ok(Some(value)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.access_error("read", error)),
        }
    }

    /// Whether there was such a key.
    pub(super) fn remove(&self, key: K) -> Result<bool, MapError> {
        let result = self.before("remove from").and_then(|()| self.lock().remove(&Plain(key)));
        match result {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.access_error("remove from", error)),
        }
    }

    /// Calls `visit` with every entry. An entry that comes or goes meanwhile is visited or not;
    /// if the one that the walk stands on goes, the kernel starts over, so others may be visited
    /// again.
    pub(super) fn for_each(&self, mut visit: impl FnMut(K, V)) -> Result<(), MapError> {
        for entry in self.lock().iter() {
            let (Plain(key), Plain(value)) =
                entry.map_err(|error| self.access_error("walk", error))?;
            visit(key, value);
        }
        Ok(())
    }

    fn before(&self, operation: &str) -> Result<(), aya::maps::MapError> {
        let what = format_args!("{operation} {}", self.name);
        failpoints::before(failpoints::Kind::Map, what).map_err(|io_error| {
            aya::maps::MapError::SyscallError(SyscallError { call: "bpf", io_error })
        })
    }

    pub(super) fn max_entries(&self) -> u32 {
        use aya::maps::IterableMap as _;
        self.lock().map().info().map_or(0, |info| info.max_entries())
    }

    fn lock(&self) -> MutexGuard<'_, Plains<K, V>> {
        // The state behind the lock is the kernel's; a panic elsewhere cannot have broken it.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access_error(&self, operation: &'static str, source: aya::maps::MapError) -> MapError {
        MapError::Access { operation, map: self.name, source: Box::new(source) }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.name).finish()
    }
}

/// The one element of an array of one.
pub(crate) struct Slot<V: Pod> {
    name: &'static str,
    map: Mutex<Array<MapData, Plain<V>>>,
}

impl<V: Pod> Slot<V> {
    pub(super) fn new(name: &'static str, map: Array<MapData, Plain<V>>) -> Self {
        Self { name, map: Mutex::new(map) }
    }

    pub(crate) fn get(&self) -> Result<V, MapError> {
        match self.lock().get(&0, 0) {
            Ok(Plain(value)) => Ok(value),
            Err(source) => Err(self.access_error("read", source)),
        }
    }

    pub(crate) fn set(&self, value: V) -> Result<(), MapError> {
        let result = self.lock().set(0, Plain(value), 0);
        result.map_err(|source| self.access_error("write", source))
    }

    fn lock(&self) -> MutexGuard<'_, Array<MapData, Plain<V>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access_error(&self, operation: &'static str, source: aya::maps::MapError) -> MapError {
        MapError::Access { operation, map: self.name, source: Box::new(source) }
    }
}

impl<V: Pod> fmt::Debug for Slot<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.name).finish()
    }
}
