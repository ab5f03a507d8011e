//! The programs of the kernel half, as pins hold them.
//!
//! Invariant: opening a pinned program triggers none of aya's feature probes, which cost about 2 ms
//! per process; hence `ProgramInfo` and not `SchedClassifier::from_pin`.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::SystemTime;

use aya::programs::{ProgramError, ProgramFd, ProgramInfo};
use margay_abi::program_name;

/// A program of the kernel half, named from the host's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// TC ingress of the host veth: what the pod sends.
    FromPod,
    /// TC egress of the host veth: what the host's stack sends to the pod.
    ToPod,
    /// Takes over from `from_pod` what that does not deliver.
    PodToNode,
    /// TC ingress of the VXLAN device: what other nodes send through the overlay.
    FromOverlay,
    /// TC egress of the VXLAN device: what goes to other nodes through the overlay.
    ToOverlay,
    /// TC ingress of the underlay's interface: what comes from outside.
    FromUplink,
    /// TC egress of the underlay's interface: what goes outside.
    ToUplink,
}

/// Programs that are loaded and pinned together, because the same process needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// What a pod needs: loaded by a node's first ADD.
    Pods,
    /// What a node needs that has others beside it: loaded by its agent.
    Nodes,
}

impl Group {
    pub(crate) const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pods => &Program::OF_POD,
            Self::Nodes => &Program::OF_NODE,
        }
    }
}

impl Program {
    /// The programs of a pod's host veth, TC ingress first.
    pub const OF_POD: [Self; 2] = [Self::FromPod, Self::ToPod];
    /// The programs of a node among others.
    pub const OF_NODE: [Self; 5] =
        [Self::PodToNode, Self::FromOverlay, Self::ToOverlay, Self::FromUplink, Self::ToUplink];

    pub(crate) const fn group(self) -> Group {
        match self {
            Self::FromPod | Self::ToPod => Group::Pods,
            Self::PodToNode
            | Self::FromOverlay
            | Self::ToOverlay
            | Self::FromUplink
            | Self::ToUplink => Group::Nodes,
        }
    }

    /// Whether it is a program for TC ingress, not for TC egress.
    pub(crate) const fn is_at_ingress(self) -> bool {
        matches!(self, Self::FromPod | Self::FromOverlay | Self::FromUplink)
    }

    /// Its name in the object, in the pin path and in bpftool.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => program_name::FROM_POD,
            Self::ToPod => program_name::TO_POD,
            Self::PodToNode => program_name::POD_TO_NODE,
            Self::FromOverlay => program_name::FROM_OVERLAY,
            Self::ToOverlay => program_name::TO_OVERLAY,
            Self::FromUplink => program_name::FROM_UPLINK,
            Self::ToUplink => program_name::TO_UPLINK,
        }
    }
}

/// The kernel's number for a loaded program, as `bpftool prog` shows it. A program loaded again has
/// another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProgramId(pub u32);

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How large a loaded program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    /// Instructions after the kernel has put its own in.
    pub instructions: u32,
    /// Instructions that the verifier looked at on all ways through the program.
    pub verified: u32,
    /// What the kernel's compiler has made of it.
    pub machine_code_bytes: u32,
}

/// A program opened from its pin.
pub(crate) struct PinnedProgram {
    fd: ProgramFd,
    info: ProgramInfo,
}

impl PinnedProgram {
    pub(crate) fn open(path: &Path) -> Result<Self, ProgramError> {
        let info = ProgramInfo::from_pin(path)?;
        Ok(Self { fd: info.fd()?, info })
    }

    pub(crate) fn fd(&self) -> &ProgramFd {
        &self.fd
    }

    pub(crate) fn id(&self) -> ProgramId {
        ProgramId(self.info.id())
    }

    /// How large it is, if the kernel tells (Linux 5.16).
    pub(crate) fn size(&self) -> Option<ProgramSize> {
        const INSTRUCTION_BYTES: u32 = 8;
        Some(ProgramSize {
            instructions: self.info.size_translated()? / INSTRUCTION_BYTES,
            verified: self.info.verified_instruction_count()?,
            machine_code_bytes: self.info.size_jitted(),
        })
    }

    /// Digest of its instructions, as bpftool and tc write it.
    pub(crate) fn tag(&self) -> String {
        format!("{:016x}", self.info.tag())
    }

    /// When it was loaded.
    pub(crate) fn loaded_at(&self) -> Option<SystemTime> {
        self.info.loaded_at()
    }

    /// Kernel numbers of the maps the program refers to.
    pub(crate) fn map_ids(&self) -> Result<Vec<u32>, ProgramError> {
        Ok(self.info.map_ids()?.unwrap_or_default())
    }
}

impl AsFd for PinnedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
