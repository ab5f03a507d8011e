//! One node's dataplane, open: the story from a root of pins to attached programs.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::ProgramError;
use margay_abi::{Counter, Overlay, Settings, Traffic, map_name};
use rtnetlink::Handle;

use crate::attach::{self, AttachError, AttachMode, AttachedFilter, AttachedPrograms};
use crate::bpffs::{self, BpffsError, ensure_bpffs};
use crate::load::{self, LoadError, LoadOptions};
use crate::maps::{Flows, MapError, Maps, Pods, Remotes};
use crate::object::Build;
use crate::pins::{self, Pins};
use crate::program::{Group, PinnedProgram, Program, ProgramId, ProgramSize};

/// Opening or loading the dataplane failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// A debug build that was made without the kernel half.
    #[error(
        "this build holds no BPF object: run `cargo xtask build-ebpf`, then build margay again"
    )]
    NoObject,
    /// There is no BPF file system to pin to.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// Loading and pinning failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A pinned map cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A pinned program cannot be used.
    #[error("open the pinned program {}", program.name())]
    Program {
        /// Which program.
        program: Program,
        #[source]
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The folder of every build's programs cannot be read.
    #[error("list the builds pinned below {root}")]
    Builds {
        /// Root of the pins.
        root: String,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// Everything was pinned, and something was gone when it was opened.
    #[error("the pins below {root} vanished right after they were made")]
    Vanished {
        /// Root of the pins.
        root: String,
    },
}

/// Whether this process loaded the programs or found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The pins of an earlier process were opened.
    Opened,
    /// This process loaded and pinned.
    Loaded,
}

/// One node's dataplane: programs and maps, pinned and open.
pub struct Datapath {
    origin: Origin,
    pins: Pins,
    from_pod: PinnedProgram,
    to_pod: PinnedProgram,
    maps: Maps,
}

impl Datapath {
    /// Opens what this build has pinned below `root`; `None` if it has pinned nothing, or not all,
    /// or the maps are not the ones the programs use.
    pub fn open(root: &Path) -> Result<Option<Self>, DatapathError> {
        Self::open_build(root, Build::embedded()?)
    }

    /// Opens what every build of this ABI version has pinned below `root`. After an upgrade, pods
    /// that were there before it keep the programs of the build that attached them.
    pub fn open_builds(root: &Path) -> Result<Vec<Self>, DatapathError> {
        let builds = pins::published_builds(root)
            .map_err(|source| DatapathError::Builds { root: root.display().to_string(), source })?;
        let opened = builds.iter().map(|build| Self::open_pins(root, build));
        opened.filter_map(Result::transpose).collect()
    }

    /// Opens what this build has pinned below `root`, and loads and pins it first if need be.
    ///
    /// However many processes call this at once, one of them loads. One that was killed half-way
    /// leaves pins that the next caller completes. Maps that another build of the same ABI version
    /// has pinned are shared, entries and all.
    pub fn open_or_load(root: &Path, options: &LoadOptions) -> Result<Self, DatapathError> {
        Self::open_or_load_build(root, options, Build::embedded()?)
    }

    pub(crate) fn open_or_load_build(
        root: &Path,
        options: &LoadOptions,
        build: Build,
    ) -> Result<Self, DatapathError> {
        if let Some(found) = Self::open_build(root, build)? {
            return Ok(found);
        }
        ensure_bpffs(root)?;
        let _lock = load::lock(&options.lock_dir)?;
        if let Some(found) = Self::open_build(root, build)? {
            return Ok(found);
        }
        load::load_and_pin(build, Group::Pods, &Pins::new(root, build.id), options)?;
        let loaded = Self::open_build(root, build)?
            .ok_or_else(|| DatapathError::Vanished { root: root.display().to_string() })?;
        Ok(Self { origin: Origin::Loaded, ..loaded })
    }

    pub(crate) fn open_build(root: &Path, build: Build) -> Result<Option<Self>, DatapathError> {
        Self::open_pins(root, build.id)
    }

    fn open_pins(root: &Path, build: &str) -> Result<Option<Self>, DatapathError> {
        bpffs::check_root(root)?;
        let pins = Pins::new(root, build);
        let Some(from_pod) = open_program(&pins, Program::FromPod)? else { return Ok(None) };
        let Some(to_pod) = open_program(&pins, Program::ToPod)? else { return Ok(None) };
        let Some(maps) = Maps::open(&pins)? else { return Ok(None) };

        let datapath = Self { origin: Origin::Opened, pins, from_pod, to_pod, maps };
        Ok(datapath.programs_use_the_pinned_maps()?.then_some(datapath))
    }

    /// Whether this call loaded or found the programs.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The kernel's numbers of this build's programs.
    #[must_use]
    pub fn program_ids(&self) -> AttachedPrograms {
        AttachedPrograms { from_pod: Some(self.from_pod.id()), to_pod: Some(self.to_pod.id()) }
    }

    /// How large a program of a pod is, if the kernel tells.
    #[must_use]
    pub fn program_size(&self, program: Program) -> Option<ProgramSize> {
        match program {
            Program::FromPod => self.from_pod.size(),
            Program::ToPod => self.to_pod.size(),
            _ => None,
        }
    }

    /// Where this node's pods are.
    #[must_use]
    pub fn pods(&self) -> &Pods {
        &self.maps.pods
    }

    /// What the programs remember of flows.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.maps.flows
    }

    /// Which way other nodes' pods are reached.
    #[must_use]
    pub fn remotes(&self) -> &Remotes {
        &self.maps.remotes
    }

    /// The VXLAN device that the programs know.
    pub fn overlay(&self) -> Result<Overlay, MapError> {
        self.maps.overlay.get()
    }

    /// Every counter and its traffic since the maps were made, summed over CPUs.
    pub fn stats(&self) -> Result<Vec<(Counter, Traffic)>, MapError> {
        self.maps.stats.read()
    }

    /// What the programs are told.
    pub fn settings(&self) -> Result<Settings, MapError> {
        self.maps.settings.get()
    }

    /// Tells the programs something else; they see it from the next packet on.
    pub fn set_settings(&self, settings: &Settings) -> Result<(), MapError> {
        self.maps.settings.set(*settings)
    }

    /// Attaches both programs to the host veth `ifindex`. In place if they or another build's are
    /// attached already: no packet passes without a program in between.
    ///
    /// The interface is looked up in the network namespace of `netlink`; with [`AttachMode::Tcx`]
    /// in the calling thread's, which must be the same.
    pub async fn attach(
        &self,
        netlink: &Handle,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<(), AttachError> {
        match mode {
            AttachMode::Clsact => {
                let programs = [
                    (Program::FromPod, self.from_pod.as_fd()),
                    (Program::ToPod, self.to_pod.as_fd()),
                ];
                attach::clsact::attach(programs, netlink, ifindex).await
            }
            AttachMode::Tcx => {
                let programs =
                    [(Program::FromPod, self.from_pod.id()), (Program::ToPod, self.to_pod.id())];
                attach::tcx::attach(programs, &self.pins, ifindex)
            }
        }
    }

    /// Detaches both programs. Content if they, or the interface, are gone. With
    /// [`AttachMode::Tcx`] and an interface that is gone, [`Datapath::remove_links`] removes what
    /// is left of it.
    pub async fn detach(
        &self,
        netlink: &Handle,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<(), AttachError> {
        match mode {
            AttachMode::Clsact => attach::clsact::detach(Program::OF_POD, netlink, ifindex).await,
            AttachMode::Tcx => attach::tcx::detach(Program::OF_POD, &self.pins, ifindex),
        }
    }

    /// Which programs are attached in margay's place on `ifindex`, of whatever build.
    pub async fn inspect(
        &self,
        netlink: &Handle,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<AttachedPrograms, AttachError> {
        let [from_pod, to_pod] = match mode {
            AttachMode::Clsact => {
                attach::clsact::inspect(Program::OF_POD, netlink, ifindex).await?
            }
            AttachMode::Tcx => attach::tcx::inspect(Program::OF_POD, &self.pins, ifindex)?,
        };
        Ok(AttachedPrograms { from_pod, to_pod })
    }

    /// Every program that is attached to the interface in margay's places, of whatever build and
    /// version, and by whichever way.
    pub async fn programs_in_use(
        netlink: &Handle,
        ifindex: u32,
    ) -> Result<Vec<ProgramId>, AttachError> {
        attach::in_use(netlink, ifindex).await
    }

    /// Everybody's filters at the hook of a program of a pod, in the order in which they run. A filter
    /// in front may decide on a packet that margay's program then does not see.
    pub async fn filters(
        root: &Path,
        netlink: &Handle,
        ifindex: u32,
        hook: Program,
    ) -> Result<Vec<AttachedFilter>, AttachError> {
        attach::filters(root, netlink, ifindex, hook).await
    }

    /// The name of the build that this executable holds.
    pub fn embedded_build() -> Result<&'static str, DatapathError> {
        Ok(Build::embedded()?.id)
    }

    /// By which way the programs of a host veth were attached that no record tells of.
    #[must_use]
    pub fn attach_mode_of(root: &Path, host_veth: &str) -> AttachMode {
        match attach::tcx::are_pinned(root, host_veth) {
            true => AttachMode::Tcx,
            false => AttachMode::Clsact,
        }
    }

    /// Removes the TCX links of the interface that is or was called `host_veth`, attached or not;
    /// `false` if there are none. Needs no open dataplane, so that a DEL can clean up after a build
    /// that is gone.
    pub fn remove_links(root: &Path, host_veth: &str) -> Result<bool, AttachError> {
        attach::tcx::remove_links(root, host_veth)
    }

    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// False after somebody unpinned maps and another build made new ones: the programs still count
    /// and look up in the old ones.
    fn programs_use_the_pinned_maps(&self) -> Result<bool, DatapathError> {
        let mut used = Vec::new();
        for (program, pinned) in
            [(Program::FromPod, &self.from_pod), (Program::ToPod, &self.to_pod)]
        {
            used.extend(pinned.map_ids().map_err(|source| program_error(program, source))?);
        }
        Ok(self.maps.are_used(&used, &[map_name::OVERLAY]))
    }
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath")
            .field("origin", &self.origin)
            .field("pins", &self.pins)
            .field("programs", &self.program_ids())
            .finish_non_exhaustive()
    }
}

pub(crate) fn open_program(
    pins: &Pins,
    program: Program,
) -> Result<Option<PinnedProgram>, DatapathError> {
    match PinnedProgram::open(&pins.program(program)) {
        Ok(pinned) => Ok(Some(pinned)),
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(None)
        }
        Err(source) => Err(program_error(program, source)),
    }
}

pub(crate) fn program_error(program: Program, source: ProgramError) -> DatapathError {
    DatapathError::Program { program, source: Box::new(source) }
}
