//! Whether this node can run the kernel half, in the time a STATUS has.
//!
//! Loads one program of two instructions and attaches nothing; changes nothing.

use std::path::Path;

use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported};
use margay_failpoints::{self as failpoints, Kind};

use crate::bpffs::{self, BpffsError};

/// What the node lacks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Pins have no place to live.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// The kernel has no `bpf_redirect_peer` for TC programs (added in Linux 5.10, 9aa1206e8f48).
    #[error("the kernel cannot run margay's TC programs: no bpf_redirect_peer (Linux 5.10)")]
    NoRedirectPeer,
    /// The kernel refused a program of two instructions.
    #[error("load a minimal TC program")]
    Load {
        /// Errno.
        #[source]
        source: ProgramError,
    },
}

/// Whether pins below `root` and the programs' kernel features are to be had; well under 2 ms.
///
/// A `root` below an unmounted `/sys/fs/bpf` is fine, since loading mounts it.
pub fn probe(root: &Path) -> Result<(), ProbeError> {
    bpffs::check(root)?;
    check_kernel()
}

/// Whether the kernel loads a program that calls what margay's call.
///
/// Asked before aya loads anything: where the kernel refuses every program, aya takes that for
/// features that are missing and says something else.
pub(crate) fn check_kernel() -> Result<(), ProbeError> {
    match load_minimal_program() {
        Ok(true) => Ok(()),
        Ok(false) => Err(ProbeError::NoRedirectPeer),
        Err(source) => Err(ProbeError::Load { source }),
    }
}

/// `false` where the kernel does not know `bpf_redirect_peer`.
fn load_minimal_program() -> Result<bool, ProgramError> {
    failpoints::before(Kind::Program, "load a minimal TC program").map_err(|io_error| {
        ProgramError::SyscallError(SyscallError { call: "bpf_prog_load", io_error })
    })?;
    is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_peer)
}
