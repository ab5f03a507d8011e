//! What other builds and other ABI versions have pinned below the same root: which programs are
//! whose, taking a pod over from an earlier version, having those that stay leave other nodes to the
//! stack, and removing what nothing uses any more.
//!
//! Invariants: of a later ABI version nothing is touched. Of an earlier one it is known where its pins
//! are, that its pods are keyed by their address, that an entry begins with the interface's index
//! (`margay_abi::PodInfo` must always), that `remote_*` empty leaves other nodes to the stack, and that
//! entries of `flows_*` may be lost; nothing else. What is attached stays attached when its pin goes.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use margay_abi::{ABI_VERSION, map_name};

use crate::load::{self, LoadError, LoadOptions};
use crate::maps::{MapError, RawTable};
use crate::pins;
use crate::program::{Group, PinnedProgram};
use crate::{Datapath, DatapathError, Program, ProgramId};

/// The programs that one build has pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedBuild {
    /// Version of the ABI that it is of.
    pub abi_version: u32,
    /// Name of the build.
    pub build: String,
    /// Its programs.
    pub programs: BTreeSet<ProgramId>,
    /// When it was published, or [made current](Datapath::make_current).
    pub current_since: SystemTime,
}

/// Pins that were removed, by their paths below the root.
pub type Removed = Vec<PathBuf>;

/// What an earlier ABI version has of a pod's address.
pub struct EarlierEntry {
    pods: RawTable,
    octets: Vec<u8>,
    /// The pod's host veth.
    pub ifindex: u32,
}

impl EarlierEntry {
    /// Removes it; `false` if it is gone. The programs of its version take the pod for one that is
    /// not on this node from then on, and drop what it sends if its own filter still runs them.
    pub fn remove(&self) -> Result<bool, MapError> {
        self.pods.remove(&self.octets)
    }
}

impl Datapath {
    /// Every build that has programs pinned below `root`, of whatever ABI version.
    pub fn pinned_builds(root: &Path) -> Result<Vec<PinnedBuild>, DatapathError> {
        let failed = |source| DatapathError::Builds { root: root.display().to_string(), source };
        let mut builds = Vec::new();
        for version in versions(root).map_err(failed)? {
            let folder = root.join(version.to_string()).join("progs");
            for build in pins::builds_in(&folder).map_err(failed)? {
                // It can go meanwhile.
                let Ok(metadata) = fs::metadata(folder.join(&build)) else { continue };
                let current_since = metadata.modified().map_err(failed)?;
                let programs = programs_in(&folder.join(&build)).map_err(failed)?;
                builds.push(PinnedBuild { abi_version: version, build, programs, current_since });
            }
        }
        Ok(builds)
    }

    /// Makes this build the one that all pods are to have, whichever was published last: for who
    /// starts it on purpose, also in place of a later one.
    pub fn make_current(&self) -> Result<(), LoadError> {
        let folder = self.pins().programs(Group::Pods);
        let now = FileTimes::new().set_modified(SystemTime::now());
        load::before("touch", &folder)?;
        let touched = File::open(&folder).and_then(|folder| folder.set_times(now));
        touched.map_err(|source| load::folder_error("touch", &folder, source))
    }

    /// The name of the build that these programs are of.
    #[must_use]
    pub fn build(&self) -> &str {
        self.pins().build()
    }

    /// The entries that earlier ABI versions have of a pod's address.
    pub fn earlier_entries(root: &Path, address: IpAddr) -> Result<Vec<EarlierEntry>, MapError> {
        let (name, octets) = match address {
            IpAddr::V4(v4) => (map_name::PODS_V4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (map_name::PODS_V6, v6.octets().to_vec()),
        };
        let mut entries = Vec::new();
        for version in earlier_versions(root) {
            let path = root.join(version.to_string()).join("maps").join(name);
            let Some(pods) = RawTable::open(name, &path)? else { continue };
            let Some(entry) = pods.get(&octets)? else { continue };
            if let Some(bytes) = entry.first_chunk() {
                let ifindex = u32::from_ne_bytes(*bytes);
                entries.push(EarlierEntry { pods, octets: octets.clone(), ifindex });
            }
        }
        Ok(entries)
    }

    /// Has the programs of earlier ABI versions leave all between nodes to the stack; `false` if they know
    /// no way. To be called by whoever tells this version's programs the ways: nobody keeps those of
    /// earlier ones right then, nor shows these what the stack does between nodes.
    ///
    /// Flows are forgotten with the ways: what is direct today may be under NAT by the time that an agent of
    /// that version comes back.
    pub fn withdraw_earlier_ways(root: &Path) -> Result<bool, MapError> {
        let mut had_ways = false;
        for version in earlier_versions(root) {
            let maps = root.join(version.to_string()).join("maps");
            let ways = tables(&maps, [map_name::REMOTE_V4, map_name::REMOTE_V6])?;
            let is_empty: Vec<bool> =
                ways.iter().map(RawTable::is_empty).collect::<Result<_, _>>()?;
            if is_empty.into_iter().all(|is_empty| is_empty) {
                continue;
            }
            let flows = tables(&maps, [map_name::FLOWS_V4, map_name::FLOWS_V6])?;
            // Before as well: if this ends in between, the next call finds nothing to do.
            for table in flows.iter().chain(&ways).chain(&flows) {
                table.clear()?;
            }
            had_ways = true;
        }
        Ok(had_ways)
    }

    /// Takes the TCX links of an interface over from earlier ABI versions: their pins become this
    /// version's, so that the next [`attach`](Datapath::attach) replaces their programs in place.
    pub fn adopt_links(root: &Path, interface: &str) -> Result<(), LoadError> {
        for version in earlier_versions(root) {
            for program in Program::OF_POD {
                let to = pins::link(root, interface, program);
                let Some(name) = to.file_name() else { continue };
                let from = root.join(version.to_string()).join("links").join(name);
                if !from.exists() || to.exists() {
                    continue;
                }
                if let Some(folder) = to.parent() {
                    load::create_folder(folder)?;
                }
                load::before("rename", &from)?;
                fs::rename(&from, &to)
                    .map_err(|source| load::folder_error("rename", &from, source))?;
            }
        }
        Ok(())
    }

    /// Removes what no interface uses any more: programs of other builds of this ABI version and of
    /// earlier ones, maps of earlier versions that have no programs left, and pins of TCX links
    /// whose interface is gone.
    ///
    /// `in_use` is what is attached anywhere. Only what was published longer than `grace` ago goes,
    /// and before this build became current: whoever has just loaded it is about to attach it. No
    /// process loads meanwhile.
    pub fn remove_unused(
        &self,
        root: &Path,
        options: &LoadOptions,
        in_use: &BTreeSet<ProgramId>,
        is_there: impl Fn(&str) -> bool + Copy,
        grace: Duration,
    ) -> Result<Removed, DatapathError> {
        let _lock = load::lock(&options.lock_dir)?;
        let builds = Self::pinned_builds(root)?;
        let ours =
            |build: &PinnedBuild| build.abi_version == ABI_VERSION && build.build == self.build();
        let current_since = builds.iter().find(|build| ours(build)).map(|b| b.current_since);
        let is_unused = |build: &PinnedBuild| {
            let age = SystemTime::now().duration_since(build.current_since).unwrap_or_default();
            !ours(build)
                && build.abi_version <= ABI_VERSION
                && build.programs.is_disjoint(in_use)
                && age >= grace
                && current_since.is_some_and(|since| build.current_since < since)
        };
        let (unused, kept): (Vec<_>, Vec<_>) = builds.into_iter().partition(is_unused);
        let mut removed = Removed::new();
        for build in unused {
            let folder =
                PathBuf::from(build.abi_version.to_string()).join("progs").join(build.build);
            load::remove_programs(&root.join(&folder))?;
            removed.push(folder);
        }
        for version in earlier_versions(root) {
            let folder = root.join(version.to_string());
            let is_kept = kept.iter().any(|build| build.abi_version == version);
            // With its pin, a link would be detached.
            if !is_kept && links_in(&folder).all(|(interface, _)| !is_there(&interface)) {
                load::remove_programs(&folder)?;
                removed.push(version.to_string().into());
            }
        }
        removed.extend(remove_dead_links(root, is_there)?);
        Ok(removed)
    }
}

impl LoadOptions {
    /// The sizes of the pod maps that the latest of the earlier ABI versions below `root` has,
    /// whose pods the next version's maps will have to hold.
    #[must_use]
    pub fn sized_as_before(mut self, root: &Path) -> Self {
        let size = |name| {
            let latest = root.join(earlier_versions(root).last()?.to_string());
            RawTable::open(name, &latest.join("maps").join(name)).ok()??.max_entries()
        };
        self.max_pods = size(map_name::PODS_V4).unwrap_or(self.max_pods);
        self.max_flows = size(map_name::FLOWS_V4).unwrap_or(self.max_flows);
        self
    }
}

/// Those of these maps that there are.
fn tables(maps: &Path, names: [&'static str; 2]) -> Result<Vec<RawTable>, MapError> {
    let tables = names.into_iter().map(|name| RawTable::open(name, &maps.join(name)).transpose());
    tables.flatten().collect()
}

fn remove_dead_links(
    root: &Path,
    is_there: impl Fn(&str) -> bool,
) -> Result<Removed, DatapathError> {
    let version = PathBuf::from(ABI_VERSION.to_string());
    let mut removed = Removed::new();
    for (_, name) in links_in(&root.join(&version)).filter(|(interface, _)| !is_there(interface)) {
        let pin = version.join("links").join(name);
        load::before("remove", &pin)?;
        fs::remove_file(root.join(&pin))
            .map_err(|error| load::folder_error("remove", &pin, error))?;
        removed.push(pin);
    }
    Ok(removed)
}

/// The pinned TCX links of a version, each as its interface and its name.
fn links_in(version: &Path) -> impl Iterator<Item = (String, String)> {
    let entries = fs::read_dir(version.join("links")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some((pins::interface_of_link(&name)?, name)))
}

/// The ABI versions that have pins below `root`, in order.
pub(crate) fn versions(root: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// Those of versions before this one's. Where the root cannot be read, nothing can be done there.
fn earlier_versions(root: &Path) -> impl DoubleEndedIterator<Item = u32> + use<> {
    versions(root).unwrap_or_default().into_iter().filter(|version| *version < ABI_VERSION)
}

/// The programs that are pinned in a folder; what is no program or goes meanwhile does not count.
fn programs_in(folder: &Path) -> io::Result<BTreeSet<ProgramId>> {
    let paths = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    Ok(paths.filter_map(|path| Some(PinnedProgram::open(&path).ok()?.id())).collect())
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    /// Every later version must find the interface where this one has it.
    #[test]
    fn an_entry_begins_with_the_interface() {
        assert_eq!(offset_of!(margay_abi::PodInfo, ifindex), 0);
    }
}
