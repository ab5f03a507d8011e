//! The userspace half of margay's dataplane: loads the kernel half once per node and build, pins
//! it, attaches it to the host side of pods' veths, and reads and writes its maps.
//!
//! The way of a node's first ADD is [`Datapath::open_or_load`]; every later one is
//! [`Datapath::open`], which costs a few pins' worth of system calls and triggers none of aya's
//! feature probes. A node among others has [`NodeDatapath`] beside it, on the same maps.
//!
//! Invariants: pins of another ABI version are never touched but by `earlier.rs`, and maps of this
//! one outlive every build, so that an upgrade keeps pods and flows. Whatever this crate makes can be found again
//! from the root of the pins and the interface alone. It must not decide anything about packets
//! (that is the kernel half) or about pods (that is the CNI plugin), and no other crate names aya.
#![deny(unsafe_code)]

mod attach;
mod bound;
mod bpf;
mod bpffs;
mod datapath;
mod earlier;
mod events;
mod inventory;
mod load;
mod maps;
mod monitor;
mod node;
mod object;
mod pins;
mod probe;
mod program;
mod rehearsal;
mod test_run;
#[cfg(test)]
mod tests;
mod unload;

pub use attach::{AttachError, AttachMode, AttachedFilter, AttachedPrograms};
pub use bpffs::{BpffsError, ensure_bpffs};
pub use datapath::{Datapath, DatapathError, Origin};
pub use earlier::{EarlierEntry, PinnedBuild, Removed};
pub use inventory::{PinnedMap, PinnedProgramInfo, pinned_maps, pinned_programs};
pub use load::{LoadError, LoadOptions};
pub use maps::{FlowEntry, Flows, MapError, Pods, Remotes};
pub use margay_abi::{Overlay, Remote, remote_mode};
pub use monitor::{Missed, Monitor, MonitorError, Selection};
pub use node::{NodeDatapath, NodeInterface};
pub use probe::{ProbeError, probe};
pub use program::{Program, ProgramId, ProgramSize};
pub use rehearsal::{Arrival, Rehearsal, RehearsalError, Rehearsed};
pub use test_run::{TestContext, TestRun, TestRunError};
