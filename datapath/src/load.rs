//! Loads the kernel half and pins it, once per node and build.
//!
//! Invariant: `progs/<build id>` appears with every program in it by one rename, after all maps are
//! pinned. So whoever finds it finds all of it, and a loader that is killed at any point leaves
//! only pins that the next one reuses (maps) or removes (an unfinished folder of programs). The
//! caller holds the lock.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aya::pin::PinError;
use aya::programs::{ProgramError, SchedClassifier};
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use margay_abi::{DEFAULT_MAX_FLOWS, DEFAULT_MAX_PODS};
use margay_failpoints as failpoints;

use crate::Program;
use crate::maps::{self, LAYOUTS, MapError};
use crate::object::Build;
use crate::pins::Pins;
use crate::probe::{self, ProbeError};

/// How often a program is handed to the verifier at most.
const VERIFIER_ATTEMPTS: u32 = 5;

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
        /// What the kernel said.
        source: PinError,
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

/// Loads `build` and pins its maps and programs.
pub(crate) fn load_and_pin(
    build: Build,
    pins: &Pins,
    options: &LoadOptions,
) -> Result<(), LoadError> {
    let started = Instant::now();
    probe::check_kernel()?;
    remove_programs(&pins.unfinished_programs())?;
    remove_programs(&pins.programs())?;
    create_folder(&pins.maps())?;
    create_folder(&pins.unfinished_programs())?;

    maps::check_pinned(pins, options)?;
    let mut object = create_maps(build, pins, options)?;
    for program in Program::ALL {
        let path = pins.unfinished_programs().join(program.name());
        load_program(&mut object, build, program, &path)?;
    }
    publish(pins)?;

    tracing::info!(build = build.id, elapsed = ?started.elapsed(), "loaded the BPF programs");
    Ok(())
}

/// Makes and pins the maps that are not pinned yet, and binds the programs to all of them.
fn create_maps(build: Build, pins: &Pins, options: &LoadOptions) -> Result<Ebpf, LoadError> {
    before("pin", &pins.maps())?;
    let mut loader = EbpfLoader::new();
    for layout in &LAYOUTS {
        loader.map_max_entries(layout.name, layout.max_entries(options));
        loader.map_pin_path(layout.name, pins.map(layout.name));
    }
    loader
        .load(build.object)
        .map_err(|source| LoadError::Object { build: build.id, source: Box::new(source) })
}

fn load_program(
    object: &mut Ebpf,
    build: Build,
    program: Program,
    path: &Path,
) -> Result<(), LoadError> {
    let classifier: &mut SchedClassifier = object
        .program_mut(program.name())
        .and_then(|found| found.try_into().ok())
        .ok_or(LoadError::NoProgram { build: build.id, program })?;
    failpoints::before(failpoints::Kind::Program, format_args!("load {}", program.name()))
        .map_err(|io_error| SyscallError { call: "bpf_prog_load", io_error }.into())
        .and_then(|()| verify(classifier))
        .map_err(|source| LoadError::Program { program, source: Box::new(source) })?;
    before("pin", path)?;
    classifier.pin(path).map_err(|source| LoadError::Pin { program, path: path.to_owned(), source })
}

/// Hands the program to the verifier, which gives up with `EAGAIN` when the kernel wants the thread
/// for something else meanwhile (`signal_pending` in `do_check`), and can be asked again.
fn verify(classifier: &mut SchedClassifier) -> Result<(), ProgramError> {
    for _ in 1..VERIFIER_ATTEMPTS {
        match classifier.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
    classifier.load()
}

/// The one step that makes this build's programs visible.
fn publish(pins: &Pins) -> Result<(), LoadError> {
    before("rename", &pins.unfinished_programs())?;
    fs::rename(pins.unfinished_programs(), pins.programs()).map_err(|source| LoadError::Folder {
        operation: "rename",
        path: pins.unfinished_programs(),
        source,
    })
}

/// Removes a folder of pinned programs, if there. What is attached stays attached.
fn remove_programs(folder: &Path) -> Result<(), LoadError> {
    before("remove", folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| folder_error("remove", folder, source)),
    }
}

fn create_folder(folder: &Path) -> Result<(), LoadError> {
    before("create", folder)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| folder_error("create", folder, source))
}

fn before(operation: &'static str, path: &Path) -> Result<(), LoadError> {
    failpoints::before(failpoints::Kind::Pin, format_args!("{operation} {}", path.display()))
        .map_err(|source| folder_error(operation, path, source))
}

fn folder_error(operation: &'static str, path: &Path, source: io::Error) -> LoadError {
    LoadError::Folder { operation, path: path.to_owned(), source }
}
