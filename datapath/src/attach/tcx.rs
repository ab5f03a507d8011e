//! Attaches by TCX links, pinned so that they outlive the process.
//!
//! A link is pinned under the interface's name, which follows from the attachment alone; an
//! interface that went away leaves a dead pin, and one of the same name may come. So a pin counts
//! only while its program is among those the kernel lists for the interface; every other pin is
//! removed. Goes through aya's `SchedClassifier`, whose feature probes (2 ms) are small beside the
//! grace period that every step here waits for.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use margay_failpoints as failpoints;
use rustix::net::{AddressFamily, SocketType};

use super::{AttachError, AttachMode, AttachedFilter};
use crate::earlier;
use crate::pins::{self, Pins};
use crate::{Program, ProgramId};

pub(crate) fn attach(
    programs: [(Program, ProgramId); 2],
    pins: &Pins,
    ifindex: u32,
) -> Result<(), AttachError> {
    let interface = interface_name(ifindex)?;
    fs::create_dir_all(pins.links()).map_err(|source| AttachError::Pin {
        operation: "create",
        path: pins.links(),
        source,
    })?;
    for (program, id) in programs {
        let site = Site { pins, interface: &interface, program };
        if site.pinned_program()? != Some(id) {
            site.put_link()?;
        }
    }
    Ok(())
}

pub(crate) fn inspect(
    programs: [Program; 2],
    pins: &Pins,
    ifindex: u32,
) -> Result<[Option<ProgramId>; 2], AttachError> {
    let interface = interface_name(ifindex)?;
    let program_at = |program| Site { pins, interface: &interface, program }.pinned_program();
    let [first, second] = programs;
    Ok([program_at(first)?, program_at(second)?])
}

/// Every program that is attached by TCX, anybody's; none where the kernel has no TCX or the
/// interface is gone.
pub(crate) fn attached(ifindex: u32) -> Result<Vec<ProgramId>, AttachError> {
    let interface = match interface_name(ifindex) {
        Err(AttachError::NoInterface { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    let at = |program| SchedClassifier::query_tcx(&interface, tc_hook(program));
    let found = Program::OF_POD.into_iter().filter_map(|program| at(program).ok());
    Ok(found.flat_map(|(_, programs)| programs).map(|info| ProgramId(info.id())).collect())
}

/// Everybody's TCX programs at the hook of `program`, in the order in which they run.
pub(crate) fn filters(
    root: &Path,
    ifindex: u32,
    program: Program,
) -> Result<Vec<AttachedFilter>, AttachError> {
    let interface = match interface_name(ifindex) {
        Err(AttachError::NoInterface { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    // A kernel without TCX has none.
    let Ok((_, attached)) = SchedClassifier::query_tcx(&interface, tc_hook(program)) else {
        return Ok(Vec::new());
    };
    let pins = Pins::new(root, "");
    let ours = Site { pins: &pins, interface: &interface, program }.pinned_program()?;
    let ids = attached.iter().map(|info| ProgramId(info.id()));
    let filter = |(id, priority): (ProgramId, u32)| AttachedFilter {
        mode: AttachMode::Tcx,
        priority,
        kind: "tcx".to_owned(),
        program: Some(id),
        is_in_margays_place: ours == Some(id),
    };
    Ok(ids.zip(0..).map(filter).collect())
}

/// Whether links of this interface are pinned, alive or not, in this ABI version's place.
pub(crate) fn are_pinned(root: &Path, interface: &str) -> bool {
    Program::OF_POD.iter().any(|program| pins::link(root, interface, *program).exists())
}

pub(crate) fn detach(programs: [Program; 2], pins: &Pins, ifindex: u32) -> Result<(), AttachError> {
    let interface = match interface_name(ifindex) {
        Err(AttachError::NoInterface { .. }) => return Ok(()),
        other => other?,
    };
    for program in programs {
        remove_pin(&pins.link(&interface, program))?;
    }
    Ok(())
}

pub(crate) fn remove_links(root: &Path, interface: &str) -> Result<bool, AttachError> {
    let mut removed = false;
    for program in Program::OF_POD {
        removed |= remove_pin(&pins::link(root, interface, program))?;
    }
    Ok(removed)
}

/// The same with those of a node among others, and of every ABI version.
pub(crate) fn remove_all_links(root: &Path, interface: &str) -> Result<bool, AttachError> {
    let mut removed = false;
    for version in earlier::versions(root).unwrap_or_default() {
        for program in Program::OF_POD.into_iter().chain(Program::OF_NODE) {
            let link = pins::link(root, interface, program);
            let Some(name) = link.file_name() else { continue };
            removed |= remove_pin(&root.join(version.to_string()).join("links").join(name))?;
        }
    }
    Ok(removed)
}

/// The place of one program on one interface.
struct Site<'a> {
    pins: &'a Pins,
    interface: &'a str,
    program: Program,
}

impl Site<'_> {
    /// The program that the pinned link runs on this very interface.
    fn pinned_program(&self) -> Result<Option<ProgramId>, AttachError> {
        let Some(link) = self.open_pin()? else { return Ok(None) };
        let info = link.info().map_err(|source| self.error("look at the TCX link of", source))?;
        let (_, attached) = SchedClassifier::query_tcx(self.interface, tc_hook(self.program))
            .map_err(|error| self.tcx_error("list the TCX programs beside", error))?;
        let id = info.program_id();
        Ok(attached.iter().any(|program| program.id() == id).then_some(ProgramId(id)))
    }

    /// Replaces the program of the pinned link if that is this interface's, else makes a new link.
    fn put_link(&self) -> Result<(), AttachError> {
        let mut classifier = SchedClassifier::from_pin(self.pins.program(self.program))
            .map_err(|source| self.error("open the pinned program", source))?;

        if self.pinned_program()?.is_some()
            && let Some(link) = self.open_pin()?
        {
            let link = SchedClassifierLink::try_from(link)
                .map_err(|source| self.error("use the TCX link of", source))?;
            let id = classifier
                .attach_to_link(link)
                .map_err(|source| self.error("replace the TCX program", source))?;
            self.release(&mut classifier, id)?;
            return Ok(());
        }

        let path = self.pins.link(self.interface, self.program);
        remove_pin(&path)?;
        before("create", &path)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier
            .attach_with_options(self.interface, tc_hook(self.program), order)
            .map_err(|error| self.tcx_error("attach the TCX program", error))?;
        self.release(&mut classifier, id)?
            .pin(&path)
            .map_err(|source| self.error("pin the TCX link of", source))?;
        Ok(())
    }

    /// Takes the link out of the classifier, which would detach it when dropped.
    fn release(
        &self,
        classifier: &mut SchedClassifier,
        id: SchedClassifierLinkId,
    ) -> Result<FdLink, AttachError> {
        let link =
            classifier.take_link(id).map_err(|source| self.error("use the TCX link of", source))?;
        FdLink::try_from(link).map_err(|source| self.error("use the TCX link of", source))
    }

    fn open_pin(&self) -> Result<Option<FdLink>, AttachError> {
        match PinnedLink::from_pin(self.pins.link(self.interface, self.program)) {
            Ok(link) => Ok(Some(FdLink::from(link))),
            Err(LinkError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(None)
            }
            Err(source) => Err(self.error("open the TCX link of", source)),
        }
    }

    /// `EINVAL` is how a kernel without TCX answers to the attach type.
    fn tcx_error(&self, operation: &'static str, source: ProgramError) -> AttachError {
        match &source {
            ProgramError::SyscallError(error)
                if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                AttachError::TcxUnsupported
            }
            _ => self.error(operation, source),
        }
    }

    fn error(
        &self,
        operation: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> AttachError {
        AttachError::Link {
            operation,
            program: self.program,
            interface: self.interface.to_owned(),
            source: Box::new(source),
        }
    }
}

fn tc_hook(program: Program) -> TcAttachType {
    if program.is_at_ingress() { TcAttachType::Ingress } else { TcAttachType::Egress }
}

/// `false` if there is none. With the last pin the kernel detaches.
fn remove_pin(path: &Path) -> Result<bool, AttachError> {
    before("remove", path)?;
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(AttachError::Pin { operation: "remove", path: path.to_owned(), source }),
    }
}

fn before(operation: &'static str, path: &Path) -> Result<(), AttachError> {
    failpoints::before(failpoints::Kind::Pin, format_args!("{operation} {}", path.display()))
        .map_err(|source| AttachError::Pin { operation, path: path.to_owned(), source })
}

/// The interface's name in this thread's network namespace.
fn interface_name(ifindex: u32) -> Result<String, AttachError> {
    let look_up = || {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        rustix::net::netdevice::index_to_name(socket, ifindex)
    };
    look_up().map_err(|errno| match errno {
        rustix::io::Errno::NODEV | rustix::io::Errno::NXIO => AttachError::NoInterface { ifindex },
        errno => {
            AttachError::Netlink { operation: "look up the name", ifindex, source: errno.into() }
        }
    })
}
