//! A pinned map of whatever value type, whose entries come and go: what is known of a map of another ABI version.
#![expect(unsafe_code, reason = "aya has no maps whose value type is not known beforehand")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::maps::MapData;
use margay_failpoints as failpoints;

use super::{MapError, open_pin};

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_DELETE_ELEM` and `BPF_MAP_GET_NEXT_KEY` of `enum bpf_cmd`.
const LOOKUP: libc::c_long = 1;
const DELETE: libc::c_long = 3;
const NEXT_KEY: libc::c_long = 4;

/// The part of `union bpf_attr` that commands on an element read.
#[repr(C)]
struct Element {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A hash map or a trie, open.
pub(crate) struct RawTable {
    name: &'static str,
    map: MapData,
    key_bytes: usize,
    value_bytes: usize,
}

impl RawTable {
    /// Opens the pin of the map that is called `name`; `None` if there is none.
    pub(crate) fn open(name: &'static str, path: &Path) -> Result<Option<Self>, MapError> {
        let Some(map) = open_pin(name, path)? else { return Ok(None) };
        let info =
            map.info().map_err(|source| MapError::Open { map: name, source: Box::new(source) })?;
        let (key_bytes, value_bytes) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Some(Self { name, map, key_bytes, value_bytes }))
    }

    /// How many entries it was created for.
    pub(crate) fn max_entries(&self) -> Option<u32> {
        Some(self.map.info().ok()?.max_entries())
    }

    /// The value under `key`; `None` also if the map's keys are of another length.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut value = vec![0; self.value_bytes];
        let found = self.element(LOOKUP, key, &mut value);
        Ok(found.map_err(|source| self.access_error("read", source))?.then_some(value))
    }

    /// Whether there was such a key.
    pub(crate) fn remove(&self, key: &[u8]) -> Result<bool, MapError> {
        let what = format_args!("remove from an earlier {}", self.name);
        failpoints::before(failpoints::Kind::Map, what)
            .and_then(|()| self.element(DELETE, key, &mut []))
            .map_err(|source| self.access_error("remove from", source))
    }

    /// Removes all that is there at the time of the call.
    pub(crate) fn clear(&self) -> Result<(), MapError> {
        for key in &self.keys()? {
            self.remove(key)?;
        }
        Ok(())
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> Result<bool, MapError> {
        Ok(self.keys()?.is_empty())
    }

    /// One that comes or goes during the walk may be missed.
    fn keys(&self) -> Result<BTreeSet<Vec<u8>>, MapError> {
        let mut keys = BTreeSet::new();
        let mut last = Vec::new();
        loop {
            let mut next = vec![0; self.key_bytes];
            let found = self.call(NEXT_KEY, &last, &mut next);
            if !found.map_err(|source| self.access_error("walk", source))? {
                return Ok(keys);
            }
            last.clone_from(&next);
            keys.insert(next);
        }
    }

    /// `false` if there is no such key.
    fn element(&self, command: libc::c_long, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        Ok(key.len() == self.key_bytes && self.call(command, key, value)?)
    }

    /// `false` if there is no such key, or for NEXT_KEY none behind it.
    fn call(&self, command: libc::c_long, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        let attr = Element {
            map_fd: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            _padding: 0,
            // NEXT_KEY of none is the first.
            key: if key.is_empty() { 0 } else { key.as_ptr() as u64 },
            // The kernel refuses fields that a command does not have, unless they are zero.
            value: if value.is_empty() { 0 } else { value.as_mut_ptr() as u64 },
            flags: 0,
        };
        // SAFETY: the kernel reads `attr`, whose size is given, and the key, which has the map's key
        // size, unless it is null; LOOKUP writes a value of the map's value size, for which `get` has
        // made room, NEXT_KEY a key, for which `keys` has, and DELETE reads no value. All of it is
        // borrowed until the call returns.
        let answer =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of_val(&attr)) };
        if answer >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error) }
    }

    fn access_error(&self, operation: &'static str, source: io::Error) -> MapError {
        let source = aya::sys::SyscallError { call: "bpf", io_error: source };
        MapError::Access { operation, map: self.name, source: Box::new(source.into()) }
    }
}
