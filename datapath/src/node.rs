//! The fast path between nodes: programs on the interfaces that lead to other nodes, and what they are
//! told of those.
//!
//! For one process per node, its agent. Everything stays pinned when that ends, and the maps are those
//! of [`Datapath`](crate::Datapath), whichever of the two came first. Loading these programs is no
//! part of an ADD.

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::Path;

use margay_abi::{Counter, Overlay, Traffic};
use rtnetlink::Handle;

use crate::attach::{self, AttachError, AttachMode};
use crate::bpffs::{self, ensure_bpffs};
use crate::datapath::{DatapathError, open_program, program_error};
use crate::load::{self, LoadOptions};
use crate::maps::{Flows, MapError, Maps, Pods, Remotes};
use crate::object::Build;
use crate::pins::{self, Pins};
use crate::program::{Group, PinnedProgram, Program, ProgramId, ProgramSize};

/// An interface that leads to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeInterface {
    /// A VXLAN device.
    Overlay,
    /// What plain packets to and from other nodes go by. An Ethernet device.
    Uplink,
}

impl NodeInterface {
    /// Its programs, TC ingress first.
    #[must_use]
    pub const fn programs(self) -> [Program; 2] {
        match self {
            Self::Overlay => [Program::FromOverlay, Program::ToOverlay],
            Self::Uplink => [Program::FromUplink, Program::ToUplink],
        }
    }
}

/// The programs of a node among others, pinned and open, and the maps.
pub struct NodeDatapath {
    pins: Pins,
    /// In the order of [`Program::OF_NODE`].
    programs: Vec<PinnedProgram>,
    maps: Maps,
}

impl NodeDatapath {
    /// Opens what this build has pinned below `root`; `None` if it has pinned nothing, or not all, or
    /// the maps are not the ones that the programs use.
    pub fn open(root: &Path) -> Result<Option<Self>, DatapathError> {
        Self::open_build(root, Build::embedded()?)
    }

    /// Opens what this build has pinned below `root`, and loads and pins it first if need be, as
    /// [`Datapath::open_or_load`](crate::Datapath::open_or_load) does.
    pub fn open_or_load(root: &Path, options: &LoadOptions) -> Result<Self, DatapathError> {
        let build = Build::embedded()?;
        if let Some(found) = Self::open_build(root, build)? {
            return Ok(found);
        }
        ensure_bpffs(root)?;
        let _lock = load::lock(&options.lock_dir)?;
        if let Some(found) = Self::open_build(root, build)? {
            return Ok(found);
        }
        let pins = Pins::new(root, build.id);
        load::load_and_pin(build, Group::Nodes, &pins, options)?;
        remove_other_builds(&pins)?;
        Self::open_build(root, build)?
            .ok_or_else(|| DatapathError::Vanished { root: root.display().to_string() })
    }

    fn open_build(root: &Path, build: Build) -> Result<Option<Self>, DatapathError> {
        bpffs::check_root(root)?;
        let pins = Pins::new(root, build.id);
        let mut programs = Vec::with_capacity(Program::OF_NODE.len());
        for program in Program::OF_NODE {
            let Some(pinned) = open_program(&pins, program)? else { return Ok(None) };
            programs.push(pinned);
        }
        let Some(maps) = Maps::open(&pins)? else { return Ok(None) };
        let datapath = Self { pins, programs, maps };
        Ok(datapath.programs_use_the_pinned_maps()?.then_some(datapath))
    }

    /// Which way other nodes' pods are reached.
    #[must_use]
    pub fn remotes(&self) -> &Remotes {
        &self.maps.remotes
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

    /// The VXLAN devices that the programs know.
    pub fn overlay(&self) -> Result<Overlay, MapError> {
        self.maps.overlay.get()
    }

    /// Tells the programs of the VXLAN devices; all zero is none. To be called when these are up and have
    /// their programs.
    pub fn set_overlay(&self, overlay: &Overlay) -> Result<(), MapError> {
        self.maps.overlay.set(*overlay)
    }

    /// Has every pod's `from_pod`, of whatever build, go on in this build's `pod_to_node` with what is not
    /// for a pod of this node. No packet is lost over it.
    pub fn take_over_from_pods(&self) -> Result<(), MapError> {
        self.maps.set_node_program(self.pinned(Program::PodToNode).map(PinnedProgram::fd))
    }

    /// Leaves all that is not for a pod of this node to the stack.
    pub fn leave_pods_alone(&self) -> Result<(), MapError> {
        self.maps.set_node_program(None)
    }

    /// Every counter and its traffic since the maps were made, summed over CPUs.
    pub fn stats(&self) -> Result<Vec<(Counter, Traffic)>, MapError> {
        self.maps.stats.read()
    }

    /// The kernel's number of a program of a node.
    #[must_use]
    pub fn program_id(&self, program: Program) -> Option<ProgramId> {
        self.pinned(program).map(PinnedProgram::id)
    }

    /// How large a program of a node is, if the kernel tells.
    #[must_use]
    pub fn program_size(&self, program: Program) -> Option<ProgramSize> {
        self.pinned(program)?.size()
    }

    /// Attaches the programs of an interface, in place if they or another build's are attached
    /// already. The namespace is that of [`Datapath::attach`](crate::Datapath::attach).
    pub async fn attach(
        &self,
        netlink: &Handle,
        ifindex: u32,
        interface: NodeInterface,
        mode: AttachMode,
    ) -> Result<(), AttachError> {
        let [first, second] = interface.programs();
        let (Some(one), Some(other)) = (self.pinned(first), self.pinned(second)) else {
            return Ok(());
        };
        match mode {
            AttachMode::Clsact => {
                let programs = [(first, one.as_fd()), (second, other.as_fd())];
                attach::clsact::attach(programs, netlink, ifindex).await
            }
            AttachMode::Tcx => {
                let programs = [(first, one.id()), (second, other.id())];
                attach::tcx::attach(programs, &self.pins, ifindex)
            }
        }
    }

    /// Detaches the programs of an interface. Content if they, or the interface, are gone.
    pub async fn detach(
        &self,
        netlink: &Handle,
        ifindex: u32,
        interface: NodeInterface,
        mode: AttachMode,
    ) -> Result<(), AttachError> {
        let programs = interface.programs();
        match mode {
            // The rest of the node's traffic goes by there.
            AttachMode::Clsact => attach::clsact::remove_filters(programs, netlink, ifindex).await,
            AttachMode::Tcx => attach::tcx::detach(programs, &self.pins, ifindex),
        }
    }

    /// Whether this build's programs are attached in margay's place on an interface.
    pub async fn is_attached(
        &self,
        netlink: &Handle,
        ifindex: u32,
        interface: NodeInterface,
        mode: AttachMode,
    ) -> Result<bool, AttachError> {
        let programs = interface.programs();
        let found = match mode {
            AttachMode::Clsact => attach::clsact::inspect(programs, netlink, ifindex).await?,
            AttachMode::Tcx => attach::tcx::inspect(programs, &self.pins, ifindex)?,
        };
        Ok(found == programs.map(|program| self.program_id(program)))
    }

    /// Which programs are attached as filters in margay's place on an interface, of whatever build.
    pub async fn inspect(
        netlink: &Handle,
        ifindex: u32,
        interface: NodeInterface,
    ) -> Result<[Option<ProgramId>; 2], AttachError> {
        attach::clsact::inspect(interface.programs(), netlink, ifindex).await
    }

    fn pinned(&self, program: Program) -> Option<&PinnedProgram> {
        let place = Program::OF_NODE.iter().position(|other| *other == program)?;
        self.programs.get(place)
    }

    /// False after somebody unpinned maps and new ones were made.
    fn programs_use_the_pinned_maps(&self) -> Result<bool, DatapathError> {
        let mut used = Vec::new();
        for (program, pinned) in Program::OF_NODE.into_iter().zip(&self.programs) {
            used.extend(pinned.map_ids().map_err(|source| program_error(program, source))?);
        }
        Ok(self.maps.are_used(&used, &[]))
    }
}

/// Unpins the programs of builds that this one takes the place of. What is attached of them stays so
/// until it is replaced.
fn remove_other_builds(pins: &Pins) -> Result<(), DatapathError> {
    let folder = pins.builds(Group::Nodes);
    let builds = pins::builds_in(&folder)
        .map_err(|source| DatapathError::Builds { root: folder.display().to_string(), source })?;
    for build in builds.iter().filter(|build| *build != pins.build()) {
        load::remove_programs(&folder.join(build))?;
    }
    Ok(())
}

impl fmt::Debug for NodeDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDatapath").field("pins", &self.pins).finish_non_exhaustive()
    }
}
