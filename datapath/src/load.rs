//! Loads the kernel half and pins it, once per node and build.
//!
//! Invariant: `progs/<build id>` appears with every program in it by one rename, after all maps are
//! pinned. So whoever finds it finds all of it, and a loader that is killed at any point leaves
//! only pins that the next one reuses (maps) or removes (an unfinished folder of programs). The
//! caller holds the lock.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use aya::EbpfError;
use aya::programs::ProgramError;
use aya::sys::SyscallError;
use margay_abi::{DEFAULT_MAX_FLOWS, DEFAULT_MAX_PODS};
use margay_failpoints as failpoints;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::bound::Bound;
use crate::bpf;
use crate::maps::{self, MapError};
use crate::object::Build;
use crate::pins::Pins;
use crate::probe::{self, ProbeError};
use crate::program::{Group, Program};

/// Loading or pinning the kernel half failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel loads no program of this kind.
    #[error(transparent)]
    Kernel(#[from] ProbeError),
    /// The lock that makes one process load cannot be had.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock file or its folder.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// A folder for pins cannot be made, removed, renamed or written to.
    #[error("{operation} {}", path.display())]
    Folder {
        /// `create`, `remove`, `rename` or `pin`.
        operation: &'static str,
        /// The folder.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// A map that is pinned already cannot be shared with this build.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The object's maps cannot be made or pinned, or the object is broken.
    #[error("create the maps of BPF object {build}")]
    Object {
        /// Which build.
        build: &'static str,
        #[source]
        /// What aya or the kernel said.
        source: Box<EbpfError>,
    },
    /// The object lacks a program.
    #[error("BPF object {build} has no TC program {}", program.name())]
    NoProgram {
        /// Which build.
        build: &'static str,
        /// Which program.
        program: Program,
    },
    /// The kernel refused a program.
    #[error("load the program {}", program.name())]
    Program {
        /// Which program.
        program: Program,
        #[source]
        /// What the verifier said.
        source: Box<ProgramError>,
    },
    /// A program cannot be pinned.
    #[error("pin the program {} to {}", program.name(), path.display())]
    Pin {
        /// Which program.
        program: Program,
        /// Where to.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
}

/// How the kernel half is loaded where it is not loaded yet. Maps that are pinned already keep
/// their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Entries of `pods_v4` and of `pods_v6`.
    pub max_pods: u32,
    /// Entries of `flows_v4` and of `flows_v6`.
    pub max_flows: u32,
    /// Folder for the file that is locked while loading; made if missing.
    pub lock_dir: PathBuf,
}

impl LoadOptions {
    /// The default sizes.
    #[must_use]
    pub fn new(lock_dir: impl Into<PathBuf>) -> Self {
        Self { max_pods: DEFAULT_MAX_PODS, max_flows: DEFAULT_MAX_FLOWS, lock_dir: lock_dir.into() }
    }
}

/// Waits until no other process loads; the lock is held until the file is dropped.
pub(crate) fn lock(lock_dir: &Path) -> Result<File, LoadError> {
    let path = lock_dir.join("datapath");
    let lock = || {
        DirBuilder::new().recursive(true).mode(0o700).create(lock_dir)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(|source| LoadError::Lock { path: path.clone(), source })
}

/// Loads a group of `build`'s programs and pins them and the maps.
pub(crate) fn load_and_pin(
    build: Build,
    group: Group,
    pins: &Pins,
    options: &LoadOptions,
) -> Result<(), LoadError> {
    let started = Instant::now();
    probe::check_kernel()?;
    lift_lock_limit();
    remove_programs(&pins.unfinished_programs(group))?;
    remove_programs(&pins.programs(group))?;
    create_folder(&pins.maps())?;
    create_folder(&pins.unfinished_programs(group))?;

    maps::check_pinned(pins, options)?;
    let bound = bind(build, pins, options)?;
    let verifier_started = Instant::now();
    let programs = load(&bound, build, group)?;
    let verifier_us = verifier_started.elapsed().as_micros();
    for (program, fd) in group.programs().iter().zip(programs) {
        pin(*program, &fd, pins.unfinished_programs(group).join(program.name()))?;
    }
    publish(pins, group)?;

    let total_us = started.elapsed().as_micros();
    tracing::info!(build = build.id, verifier_us, total_us, "loaded the BPF programs");
    Ok(())
}

/// Linux before 5.11 counts maps and programs as memory that the process has locked.
fn lift_lock_limit() {
    // Where that is refused, the kernel says what it lacks as soon as it lacks it.
    _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Makes and pins the maps that are not pinned yet, and binds the programs to all of them.
fn bind(build: Build, pins: &Pins, options: &LoadOptions) -> Result<Bound, LoadError> {
    before("pin", &pins.maps())?;
    Bound::new(build.object, pins, options)
        .map_err(|source| LoadError::Object { build: build.id, source: Box::new(source) })
}

/// Has the kernel verify all programs of a group at once, each on a thread of its own: a node's first pod waits
/// for the longest, and not for their sum.
fn load(bound: &Bound, build: Build, group: Group) -> Result<Vec<OwnedFd>, LoadError> {
    let failed = |program| move |source| LoadError::Program { program, source: Box::new(source) };
    for &program in group.programs() {
        if !bound.has(program) {
            return Err(LoadError::NoProgram { build: build.id, program });
        }
        failpoints::before(failpoints::Kind::Program, format_args!("load {}", program.name()))
            .map_err(|io_error| SyscallError { call: "bpf_prog_load", io_error }.into())
            .map_err(failed(program))?;
    }
    thread::scope(|scope| {
        let start = |program: Program| {
            thread::Builder::new().spawn_scoped(scope, move || bound.load(program.name()))
        };
        let loads: Vec<_> =
            group.programs().iter().map(|&program| (program, start(program))).collect();
        let outcomes = loads.into_iter().map(|(program, load)| {
            let outcome = match load {
                Ok(load) => load.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(io_error) => Err(SyscallError { call: "clone", io_error }.into()),
            };
            outcome.map_err(failed(program))
        });
        outcomes.collect()
    })
}

fn pin(program: Program, fd: &OwnedFd, path: PathBuf) -> Result<(), LoadError> {
    before("pin", &path)?;
    bpf::pin(fd.as_fd(), &path).map_err(|source| LoadError::Pin { program, path, source })
}

/// The one step that makes this build's programs visible.
fn publish(pins: &Pins, group: Group) -> Result<(), LoadError> {
    let unfinished = pins.unfinished_programs(group);
    before("rename", &unfinished)?;
    fs::rename(&unfinished, pins.programs(group))
        .map_err(|source| folder_error("rename", &unfinished, source))
}

/// Removes a folder of pinned programs, if there. What is attached stays attached.
pub(crate) fn remove_programs(folder: &Path) -> Result<(), LoadError> {
    before("remove", folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| folder_error("remove", folder, source)),
    }
}

pub(crate) fn create_folder(folder: &Path) -> Result<(), LoadError> {
    before("create", folder)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| folder_error("create", folder, source))
}

pub(crate) fn before(operation: &'static str, path: &Path) -> Result<(), LoadError> {
    failpoints::before(failpoints::Kind::Pin, format_args!("{operation} {}", path.display()))
        .map_err(|source| folder_error(operation, path, source))
}

pub(crate) fn folder_error(operation: &'static str, path: &Path, source: io::Error) -> LoadError {
    LoadError::Folder { operation, path: path.to_owned(), source }
}
