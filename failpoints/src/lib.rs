//! The places where a test can have a plugin killed, or have a request refused as the kernel or a
//! full disk would refuse it. Without the feature `enabled` nothing of this is compiled in.
//!
//! Invariant: every change that margay makes outside its own memory comes by [`before`] first, in
//! the one function that all changes of its kind go through. So a test that kills at the first
//! place, the second, and so on until the plugin survives has been between any two changes, whatever
//! steps a verb has by then; there is no list of steps to keep.
//!
//! The environment variable `FAILPOINTS` says what happens, in the words of the `fail` crate:
//!
//! | `FAILPOINTS` | what happens |
//! | --- | --- |
//! | `change=4*off->1*return(kill)` | `SIGKILL` before the fifth change |
//! | `netlink=4*off->1*return(16)` | the fifth netlink request is answered with errno 16 |
//! | `netlink=4*off->return(16)` | and so is every later one |
//! | `pod_side=sleep(200)` | the phase of that name begins 200 ms late |
//!
//! What happens is also said on stderr: `fail point: kill before netlink create veth …`.

use std::fmt::Display;
use std::io;

/// What kind of thing comes next: the name of its fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A netlink request that changes something.
    Netlink,
    /// A netlink request that only asks.
    NetlinkQuery,
    /// A write to a pinned map.
    Map,
    /// A program that is given to the kernel: gone with the process unless it is pinned.
    Program,
    /// A pin, or a folder of pins, that is made, renamed or removed.
    Pin,
    /// A write to the datastore.
    Store,
    /// A file of the node's own that is written or removed.
    File,
    /// A write to `/proc/sys`.
    Sysctl,
    /// A transaction of nftables.
    Nft,
    /// The execution of another plugin.
    Plugin,
    /// The answer to the runtime.
    Answer,
}

impl Kind {
    /// Name of the fail point of this kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Netlink | Self::NetlinkQuery => "netlink",
            Self::Map => "entry",
            Self::Program => "program",
            Self::Pin => "pin",
            Self::Store => "store",
            Self::File => "file",
            Self::Sysctl => "sysctl",
            Self::Nft => "nft",
            Self::Plugin => "plugin",
            Self::Answer => "answer",
        }
    }

    /// Whether it changes anything that outlives the process. To be killed before anything else is
    /// to be killed before the next change.
    #[must_use]
    pub fn is_change(self) -> bool {
        !matches!(self, Self::NetlinkQuery | Self::Program)
    }
}

/// To be called before anything of this kind is done, and its error to be taken for the kernel's.
///
/// # Errors
/// The errno that the test asks for.
#[inline]
pub fn before(kind: Kind, what: impl Display) -> io::Result<()> {
    enabled::before(kind, &what)
}

/// To be called where a phase begins.
///
/// # Errors
/// When the test asks for one: at the fail point `phase`, which counts phases, or at that of the
/// phase's own name.
#[inline]
pub fn phase(name: &'static str) -> io::Result<()> {
    enabled::phase(name)
}

#[cfg(not(feature = "enabled"))]
mod enabled {
    use super::{Display, Kind, io};

    #[inline]
    pub(crate) fn before(_kind: Kind, _what: &dyn Display) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    pub(crate) fn phase(_name: &'static str) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "enabled")]
mod enabled {
    use std::sync::Once;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Display, Kind, io};

    pub(crate) fn before(kind: Kind, what: &dyn Display) -> io::Result<()> {
        if kind.is_change() {
            hit("change", kind.name(), what)?;
        }
        hit(kind.name(), kind.name(), what)
    }

    pub(crate) fn phase(name: &'static str) -> io::Result<()> {
        hit("phase", "phase", &name)?;
        hit(name, "phase", &name)
    }

    fn hit(point: &str, kind: &str, what: &dyn Display) -> io::Result<()> {
        // Takes over the environment for the life of the process.
        static READ: Once = Once::new();
        READ.call_once(|| std::mem::forget(fail::FailScenario::setup()));
        fail::fail_point!(point, |argument: Option<String>| {
            let argument = argument.unwrap_or_default();
            eprintln!("fail point: {argument} before {kind} {what}");
            if argument == "kill" {
                let killed = kill_process(getpid(), Signal::KILL);
                unreachable!("SIGKILL returned: {killed:?}");
            }
            Err(match argument.parse() {
                Ok(errno) => io::Error::from_raw_os_error(errno),
                Err(_) => io::Error::other("a test asked for it"),
            })
        });
        Ok(())
    }
}
