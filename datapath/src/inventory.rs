//! What is pinned below a root, of whatever build and ABI version, as the kernel describes it: for people.
//!
//! Nothing is typed here, so that what another version has made can be shown too.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::time::SystemTime;

use aya::maps::{MapData, MapInfo, MapType};

use crate::bpf;
use crate::datapath::DatapathError;
use crate::earlier;
use crate::pins;
use crate::program::{PinnedProgram, ProgramId, ProgramSize};

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedMap {
    /// Version of the ABI that it is of.
    pub abi_version: u32,
    /// Its name, and its pin's.
    pub name: String,
    /// The kernel's number of it.
    pub id: u32,
    /// Its type, in bpftool's words.
    pub kind: String,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Entries that are there; of an array, all.
    pub entries: u32,
    /// Entries that there is room for.
    pub max_entries: u32,
    /// What it takes of the kernel's memory, if that tells. Exact from Linux 6.4 on; before, an estimate of
    /// what the map takes when it is full.
    pub memory_bytes: Option<u64>,
}

/// A pinned program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedProgramInfo {
    /// Version of the ABI that it is of.
    pub abi_version: u32,
    /// Its build.
    pub build: String,
    /// Its name, and its pin's.
    pub name: String,
    /// The kernel's number of it.
    pub id: ProgramId,
    /// Digest of its instructions, as bpftool and tc show it.
    pub tag: String,
    /// How large it is, if the kernel tells (Linux 5.16).
    pub size: Option<ProgramSize>,
    /// What it takes of the kernel's memory, if that tells.
    pub memory_bytes: Option<u64>,
    /// When it was loaded.
    pub loaded_at: Option<SystemTime>,
    /// Time that it ran while statistics were on (`kernel.bpf_stats_enabled`), ns.
    pub run_time_ns: Option<u64>,
    /// How often it ran meanwhile.
    pub run_count: Option<u64>,
    /// Maps that it uses.
    pub map_ids: Vec<u32>,
}

/// Every pinned map below `root`, in the order of versions and names. One that goes meanwhile is left out.
pub fn pinned_maps(root: &Path) -> Result<Vec<PinnedMap>, DatapathError> {
    let mut maps = Vec::new();
    for (version, folder) in folders(root, "maps")? {
        for (name, path) in entries(&folder) {
            maps.extend(pinned_map(version, name, &path));
        }
    }
    Ok(maps)
}

/// Every pinned program below `root`, in the order of versions and builds. One that goes meanwhile is left
/// out.
pub fn pinned_programs(root: &Path) -> Result<Vec<PinnedProgramInfo>, DatapathError> {
    let mut programs = Vec::new();
    for group in ["progs", "node-progs"] {
        for (version, folder) in folders(root, group)? {
            let failed =
                |source| DatapathError::Builds { root: root.display().to_string(), source };
            let mut builds = pins::builds_in(&folder).map_err(failed)?;
            builds.sort();
            for build in builds {
                for (name, path) in entries(&folder.join(&build)) {
                    programs.extend(pinned_program(version, &build, name, &path));
                }
            }
        }
    }
    Ok(programs)
}

/// The folders of this name, of every version that has one.
fn folders(root: &Path, name: &str) -> Result<Vec<(u32, std::path::PathBuf)>, DatapathError> {
    let failed = |source| DatapathError::Builds { root: root.display().to_string(), source };
    let versions = earlier::versions(root).map_err(failed)?;
    Ok(versions.into_iter().map(|v| (v, root.join(v.to_string()).join(name))).collect())
}

/// Names and paths of what is in a folder, sorted; nothing where there is no folder.
fn entries(folder: &Path) -> Vec<(String, std::path::PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named =
        entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    let mut named: Vec<_> = named.collect();
    named.sort();
    named
}

fn pinned_map(abi_version: u32, name: String, path: &Path) -> Option<PinnedMap> {
    let map = MapData::from_pin(path).ok()?;
    let info = map.info().ok()?;
    let kind = info.map_type().ok()?;
    let max_entries = info.max_entries();
    let entries = match kind {
        MapType::Hash | MapType::LruHash | MapType::LpmTrie => {
            bpf::count_keys(&map, info.key_size(), max_entries).ok()?
        }
        _ => max_entries,
    };
    Some(PinnedMap {
        abi_version,
        name,
        id: info.id(),
        kind: kind_name(&info),
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        entries,
        max_entries,
        memory_bytes: described(map.fd(), "memlock"),
    })
}

fn kind_name(info: &MapInfo) -> String {
    match info.map_type() {
        Ok(MapType::Hash) => "hash".to_owned(),
        Ok(MapType::LruHash) => "lru_hash".to_owned(),
        Ok(MapType::LpmTrie) => "lpm_trie".to_owned(),
        Ok(MapType::Array) => "array".to_owned(),
        Ok(MapType::PerCpuArray) => "percpu_array".to_owned(),
        Ok(MapType::ProgramArray) => "prog_array".to_owned(),
        Ok(other) => format!("{other:?}").to_lowercase(),
        Err(_) => "unknown".to_owned(),
    }
}

fn pinned_program(
    abi_version: u32,
    build: &str,
    name: String,
    path: &Path,
) -> Option<PinnedProgramInfo> {
    let program = PinnedProgram::open(path).ok()?;
    let number = |key| described(&program, key);
    Some(PinnedProgramInfo {
        abi_version,
        build: build.to_owned(),
        name,
        id: program.id(),
        tag: program.tag(),
        size: program.size(),
        memory_bytes: number("memlock"),
        loaded_at: program.loaded_at(),
        run_time_ns: number("run_time_ns"),
        run_count: number("run_cnt"),
        map_ids: program.map_ids().unwrap_or_default(),
    })
}

/// A number of what the kernel says of an open map or program in `/proc/self/fdinfo`.
pub(crate) fn described(fd: impl AsFd, key: &str) -> Option<u64> {
    let number = fd.as_fd().as_raw_fd();
    let text: io::Result<String> = fs::read_to_string(format!("/proc/self/fdinfo/{number}"));
    let text = text.ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}
