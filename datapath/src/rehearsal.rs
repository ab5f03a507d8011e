//! What would become of a packet, without anything coming of it.
//!
//! The embedded object's programs are loaded a second time, without pins. They look up in the pinned maps,
//! as the live ones do, but what they write is their own: flows and counters, and tail calls lead to their own. So a run
//! takes the same decisions by the same code, and leaves no trace. Invariant: nothing pinned is written
//! to, nothing is attached, and all of it is gone with the process.
//!
//! It is this build's programs that are rehearsed, whichever build's are attached: compare
//! [`Rehearsal::BUILD`].

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::EbpfError;
use aya::maps::MapData;
use aya::programs::ProgramError;
use margay_abi::event::tail_call;
use margay_abi::{Counter, DEFAULT_MAX_PODS};

use crate::bound::Bound;
use crate::bpf;
use crate::load::LoadOptions;
use crate::maps::{self, Flows, MapError, OwnMaps};
use crate::object::Build;
use crate::pins::Pins;
use crate::test_run::SkBuff;
use crate::{DatapathError, Program, ProgramId, TestContext};

/// Flows that a rehearsal has room for. A packet is of one or, if it quotes another, of two.
const MAX_FLOWS: u32 = 4096;

/// A packet cannot be rehearsed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RehearsalError {
    /// This build has no kernel half.
    #[error(transparent)]
    Build(#[from] DatapathError),
    /// The maps cannot be made, or those that are pinned are not there.
    #[error("bind BPF object {build} to the pinned maps")]
    Bind {
        /// Which build.
        build: &'static str,
        #[source]
        /// What aya or the kernel said.
        source: Box<EbpfError>,
    },
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused a program.
    #[error("load the program {} for a rehearsal", program.name())]
    Load {
        /// Which program.
        program: Program,
        #[source]
        /// What the verifier said.
        source: Box<ProgramError>,
    },
    /// The kernel refused the run: a frame of less than 14 bytes, or an interface that is not in
    /// this thread's network namespace.
    #[error("run {} on a frame of {frame_bytes} bytes", program.name())]
    Run {
        /// Which program.
        program: Program,
        /// Length of the frame.
        frame_bytes: usize,
        #[source]
        /// Errno.
        source: io::Error,
    },
}

/// How a packet comes to a hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Interface whose hook it is, in this thread's network namespace.
    pub ifindex: u32,
    /// Interface by which it came to this namespace; 0 if it began here.
    pub ingress_ifindex: u32,
}

/// What a program did with the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// What it was counted as; `None` if it was passed on uncounted.
    pub counter: Option<Counter>,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// This build's programs, for packets that are none.
pub struct Rehearsal {
    // Programs are loaded when they are asked for, so that one question costs one verification.
    programs: [OnceCell<OwnedFd>; PROGRAMS.len()],
    bound: Bound,
    own: OwnMaps,
    /// Whether `from_pod` goes on in another program, as the pinned map has it.
    node_program: Option<ProgramId>,
    is_in_place: OnceCell<()>,
}

const PROGRAMS: [Program; 7] = [
    Program::FromPod,
    Program::ToPod,
    Program::PodToNode,
    Program::FromOverlay,
    Program::ToOverlay,
    Program::FromUplink,
    Program::ToUplink,
];

impl Rehearsal {
    /// Name of the build that is rehearsed.
    pub const BUILD: &str = Build::ID;

    /// Makes one of the maps that are pinned below `root`.
    pub fn new(root: &Path) -> Result<Self, RehearsalError> {
        let build = Build::embedded()?;
        // Maps are pinned beside the builds: the path does not name one.
        let pins = Pins::new(root, "");
        maps::check_layouts(&pins)?;
        let options = LoadOptions {
            max_pods: DEFAULT_MAX_PODS,
            max_flows: MAX_FLOWS,
            lock_dir: std::path::PathBuf::new(),
        };
        let mut bound = Bound::beside(build.object, &pins, &OwnMaps::NAMES, &options)
            .map_err(|source| RehearsalError::Bind { build: build.id, source: Box::new(source) })?;
        let own = OwnMaps::of(&mut bound)?;
        Ok(Self {
            programs: Default::default(),
            bound,
            own,
            node_program: maps::pinned_node_program(&pins)?,
            is_in_place: OnceCell::new(),
        })
    }

    /// What its programs know of flows: nothing, until it is written here.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.own.flows
    }

    /// The live program that `from_pod` goes on in, on a node among others.
    #[must_use]
    pub fn node_program(&self) -> Option<ProgramId> {
        self.node_program
    }

    /// Runs `program` on a frame, which begins with its Ethernet header.
    pub fn run(
        &self,
        program: Program,
        frame: &[u8],
        arrival: Arrival,
    ) -> Result<Rehearsed, RehearsalError> {
        if program == Program::FromPod {
            self.put_node_program_in_place()?;
        }
        let loaded = self.load(program)?;
        let Arrival { ifindex, ingress_ifindex } = arrival;
        let context =
            SkBuff::from(TestContext { ifindex, ingress_ifindex, ..TestContext::default() });
        let mut out = frame.to_vec();
        let before = self.own.stats.read()?;
        bpf::run_program(loaded.as_fd(), &mut out, bytemuck::bytes_of(&context))
            .map_err(|source| RehearsalError::Run { program, frame_bytes: frame.len(), source })?;
        let after = self.own.stats.read()?;
        let counted = before.iter().zip(&after).find(|(before, after)| before != after);
        Ok(Rehearsed { counter: counted.map(|((counter, _), _)| *counter), frame: out })
    }

    /// Has `from_pod` go on as the live one does.
    fn put_node_program_in_place(&self) -> Result<(), RehearsalError> {
        if self.node_program.is_none() || self.is_in_place.get().is_some() {
            return Ok(());
        }
        set_program(&self.own.tail_calls, self.load(Program::PodToNode)?).map_err(|source| {
            maps::access_error("write", margay_abi::map_name::TAIL_CALLS, source)
        })?;
        _ = self.is_in_place.set(());
        Ok(())
    }

    fn load(&self, program: Program) -> Result<&OwnedFd, RehearsalError> {
        let place = PROGRAMS.iter().position(|other| *other == program).unwrap_or_default();
        let slot = &self.programs[place];
        if let Some(loaded) = slot.get() {
            return Ok(loaded);
        }
        let failed = |source| RehearsalError::Load { program, source: Box::new(source) };
        let loaded = self.bound.load(program.name()).map_err(failed)?;
        Ok(slot.get_or_init(|| loaded))
    }
}

/// Puts a program where the first tail call leads.
fn set_program(array: &MapData, program: &OwnedFd) -> io::Result<()> {
    bpf::put_program(array, tail_call::POD_TO_NODE, program.as_fd())
}

impl fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rehearsal")
            .field("node_program", &self.node_program)
            .finish_non_exhaustive()
    }
}
