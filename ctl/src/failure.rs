//! Every way a command can fail, and what to try next.

use std::path::PathBuf;

use anstyle::AnsiColor;
use margay::error::chain;
use margay::ipam::IpamError;
use margay::netlink::NetlinkError;
use margay_datapath::{AttachError, DatapathError, MapError, MonitorError, RehearsalError};
use margay_datastore::StoreError;

use crate::commands::trace::PacketError;
use crate::output::printable;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// There is no configuration of margay's.
    #[error("no network configuration of margay's in {}", path.display())]
    NoConfiguration {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A configuration of margay's cannot be used.
    #[error("{}", path.display())]
    Configuration {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no datastore yet.
    #[error("there is no datastore at {} yet: no pod was ever made here", path.display())]
    NoDatastore {
        /// Where it would be.
        path: PathBuf,
    },
    /// The datastore failed, or refuses, or the kernel does.
    #[error(transparent)]
    Margay(Box<margay::error::Error>),
    /// No programs are pinned.
    #[error("no programs of margay's are pinned below {}", root.display())]
    NoDatapath {
        /// Root of the pins.
        root: PathBuf,
    },
    /// The pinned programs or maps cannot be used.
    #[error("dataplane")]
    Datapath(#[from] DatapathError),
    /// A pinned map cannot be read or written.
    #[error("dataplane")]
    Map(#[from] MapError),
    /// What is attached to an interface cannot be looked at.
    #[error("dataplane")]
    Attach(#[from] AttachError),
    /// A packet cannot be rehearsed.
    #[error("rehearse the packet")]
    Rehearsal(#[from] RehearsalError),
    /// The programs cannot be listened to.
    #[error("listen to the programs")]
    Monitor(#[from] MonitorError),
    /// The packet that was asked about cannot be made.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Nothing goes by the name that was given.
    #[error("there is no {kind} {name:?}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The command that lists what there is.
        list: &'static str,
    },
    /// Several things go by the name that was given.
    #[error("several {kind} go by {name:?}: {}", candidates.join(", "))]
    Ambiguous {
        /// What was looked for.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// Names that tell them apart.
        candidates: Vec<String>,
    },
    /// A node was not removed, or not to its end.
    #[error(transparent)]
    NodeRemoval(#[from] margay_datastore::RemoveNodeError),
    /// What was asked for is not done.
    #[error("{0}")]
    Refused(String),
    /// Something would do harm.
    #[error("{reason}")]
    Harmful {
        /// What is in the way.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A program cannot be run.
    #[error("run {}", program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The report cannot be written.
    #[error("write the report")]
    Output(#[source] std::io::Error),
}

impl From<margay::error::Error> for Failure {
    fn from(error: margay::error::Error) -> Self {
        Self::Margay(Box::new(error))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        margay::error::Error::from(error).into()
    }
}

impl From<IpamError> for Failure {
    fn from(error: IpamError) -> Self {
        margay::error::Error::from(error).into()
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        margay::error::Error::from(error).into()
    }
}

impl Failure {
    /// What the process ends with: 1, but for arguments that clap refuses, with 2.
    pub(crate) fn exit_code(&self) -> u8 {
        1
    }

    /// The command to try next, or what to do first.
    pub(crate) fn hint(&self) -> Option<String> {
        if !rustix::process::geteuid().is_root() && self.may_be_for_want_of_privilege() {
            return Some("this needs root: try again with sudo".to_owned());
        }
        Some(match self {
            Self::NoConfiguration { .. } => {
                "name the file or its folder with --config; docs/install.md says how to install one"
                    .to_owned()
            }
            Self::NoDatastore { .. } | Self::NoDatapath { .. } => {
                "margayctl doctor says what this node still needs".to_owned()
            }
            Self::Harmful { hint, .. } => (*hint).to_owned(),
            Self::Unknown { list, .. } => format!("{list} lists what there is"),
            Self::Monitor(MonitorError::Full) => "end another margayctl monitor first".to_owned(),
            Self::Monitor(MonitorError::Displaced) => {
                "the configurations of one node must agree on run_dir, which has the locks"
                    .to_owned()
            }
            Self::Monitor(MonitorError::Unloaded) => {
                "margayctl status says what is loaded; start again once it is".to_owned()
            }
            Self::Datapath(_) | Self::Map(_) | Self::Monitor(_) => {
                "margayctl doctor looks deeper".to_owned()
            }
            Self::Ambiguous { .. } => "name one of these".to_owned(),
            _ => return None,
        })
    }

    fn may_be_for_want_of_privilege(&self) -> bool {
        !matches!(
            self,
            Self::Output(_)
                | Self::Configuration { .. }
                | Self::Unknown { .. }
                | Self::Ambiguous { .. }
                | Self::Refused(_)
                | Self::Harmful { .. }
                | Self::Packet(_)
        )
    }

    pub(crate) fn print(&self) {
        let red = AnsiColor::Red.on_default().bold();
        anstream::eprintln!("{red}margayctl:{red:#} {}", self.text());
        if let Some(hint) = self.hint() {
            anstream::eprintln!("{}", printable(&hint));
        }
    }

    /// In lines, the first of which says what it is; each printable.
    fn text(&self) -> String {
        let Self::Ambiguous { kind, name, candidates } = self else {
            return chain(self);
        };
        let mut text = printable(&format!("several {kind} go by {name:?}:"));
        for candidate in candidates {
            text += "\n  ";
            text += &printable(candidate);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_a_terminal_nothing_and_candidates_keep_their_lines() {
        let candidates = vec!["a\u{1b}[2J\nb".to_owned(), "c".to_owned()];
        let ambiguous = Failure::Ambiguous { kind: "pods", name: "web".to_owned(), candidates };
        let refused = Failure::Refused("x\u{1b}]0;y\u{7}\n".to_owned());

        assert_eq!(ambiguous.text(), "several pods go by \"web\":\n  a[2Jb\n  c");
        assert!(!refused.text().contains(char::is_control), "{}", refused.text());
    }
}
