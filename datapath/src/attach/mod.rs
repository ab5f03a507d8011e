//! Puts two programs on an interface, one for each direction.
//!
//! Two ways with the same meaning: clsact filters (default) and TCX links. Invariant: attaching
//! twice changes nothing, attaching over another build replaces in place, and what others have
//! attached to the interface stays.

pub(crate) mod clsact;
pub(crate) mod tcx;

use std::io;
use std::path::{Path, PathBuf};

use rtnetlink::Handle;

use crate::{Program, ProgramId};

/// Attaching, detaching or looking failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The kernel has no TCX (added in Linux 6.6, e420bed02507).
    #[error("this kernel has no TCX links (Linux 6.6): use clsact")]
    TcxUnsupported,
    /// The interface has an `ingress` qdisc, which excludes clsact.
    #[error(
        "interface {ifindex} has an ingress qdisc of somebody else's, which excludes clsact: use tcx"
    )]
    IngressQdisc {
        /// The interface.
        ifindex: u32,
    },
    /// No interface has this index.
    #[error("there is no interface {ifindex}")]
    NoInterface {
        /// The index.
        ifindex: u32,
    },
    /// The kernel refused a netlink request.
    #[error("{operation} on interface {ifindex}")]
    Netlink {
        /// What was tried, with its object.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// The netlink connection is gone, or its answer makes no sense.
    #[error("{operation} on interface {ifindex}")]
    Connection {
        /// What was tried, with its object.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
        #[source]
        /// What the connection said.
        source: rtnetlink::Error,
    },
    /// A TCX link cannot be made, replaced, or read.
    #[error("{operation} {} on interface {interface}", program.name())]
    Link {
        /// What was tried.
        operation: &'static str,
        /// Which program.
        program: Program,
        /// The interface.
        interface: String,
        #[source]
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin of a TCX link cannot be made or removed.
    #[error("{operation} {}", path.display())]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// The pin or its folder.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
}

/// Every program at margay's places on an interface, by whichever way it was attached, with those of
/// others where TCX has them.
pub(crate) async fn in_use(netlink: &Handle, ifindex: u32) -> Result<Vec<ProgramId>, AttachError> {
    let mut programs = tcx::attached(ifindex)?;
    let attached = clsact::inspect(Program::OF_POD, netlink, ifindex).await?;
    programs.extend(attached.into_iter().flatten());
    Ok(programs)
}

/// Everybody's filters at the hook of a program of a pod, in the order in which they run: links of TCX
/// come before what hangs on a qdisc.
pub(crate) async fn filters(
    root: &Path,
    netlink: &Handle,
    ifindex: u32,
    program: Program,
) -> Result<Vec<AttachedFilter>, AttachError> {
    let mut filters = tcx::filters(root, ifindex, program)?;
    filters.extend(clsact::filters(netlink, ifindex, program).await?);
    Ok(filters)
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// `bpf` filters in direct-action mode under a clsact qdisc.
    #[default]
    Clsact,
    /// TCX links, pinned (Linux 6.6). For interfaces whose clsact or ingress qdisc is somebody
    /// else's. Costs 10–25 ms, since the kernel waits for an RCU grace period under RTNL.
    Tcx,
}

/// What somebody has attached to a hook of a host veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedFilter {
    /// By which way.
    pub mode: AttachMode,
    /// TC's priority; with TCX the place in the order, from 0.
    pub priority: u32,
    /// TC's kind, such as `bpf` or `matchall`; `tcx`.
    pub kind: String,
    /// Its program, if it is one.
    pub program: Option<ProgramId>,
    /// Whether it is where margay attaches its own.
    pub is_in_margays_place: bool,
}

/// A program for each hook of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachedPrograms {
    /// At TC ingress of the host veth.
    pub from_pod: Option<ProgramId>,
    /// At TC egress of the host veth.
    pub to_pod: Option<ProgramId>,
}

impl AttachedPrograms {
    /// The program at one hook.
    #[must_use]
    pub fn get(&self, program: Program) -> Option<ProgramId> {
        match program {
            Program::FromPod => self.from_pod,
            Program::ToPod => self.to_pod,
            _ => None,
        }
    }
}
