//! Every way a verb can fail, and the one place that chooses CNI's error codes.
//!
//! The specification's codes are below 100; margay's own are the constants of [`code`].

use std::path::PathBuf;

use margay_datastore::{Attachment, AttachmentError, BackendError, StoreError};
use rscni_types::error::Error as CniError;

use crate::args::ArgsError;
use crate::config::ConfigError;
use crate::confinement;
use crate::dataplane::DataplaneError;
use crate::deletions::DeletionError;
use crate::directories::DirectoryError;
use crate::host::HostError;
use crate::ipam::IpamError;
use crate::lock::LockError;
use crate::mtu::MtuTooSmall;
use crate::nat::NatError;
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use crate::phases::Injected;
use crate::pod::PodError;
use crate::protocol::ProtocolError;
use crate::shaping::ShapingError;
use crate::sysctl::SysctlError;

/// margay's own error codes.
pub mod code {
    /// The attachment exists and is alive: a second ADD.
    pub const ALREADY_EXISTS: u32 = 100;
    /// No address is left in the pools, or the one that was asked for is not to be had.
    pub const NO_ADDRESS: u32 = 101;
    /// The eBPF data path cannot be loaded or attached.
    pub const DATAPLANE: u32 = 102;
    /// The kernel refused a change of links, addresses, routes, neighbours or qdiscs.
    pub const NETLINK: u32 = 103;
    /// CHECK found something that is not as ADD left it.
    pub const MISMATCH: u32 = 104;
    /// A delegated plugin could not be run or gave no answer that can be read. An error that it
    /// reports keeps its own code.
    pub const DELEGATED: u32 = 105;
    /// What `nat_outgoing` asks for cannot be had: `nft` is missing or refused the rules.
    pub const NAT: u32 = 106;
    /// A fail point of a test build.
    pub const INJECTED: u32 = 199;
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call is not one of CNI's.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The network configuration is refused.
    #[error("network configuration")]
    Config(#[from] ConfigError),
    /// The datastore has not the pools that the network configuration chooses there.
    #[error("network configuration")]
    Unsettled(#[source] ConfigError),
    /// `CNI_ARGS` is refused.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The parts of an attachment do not make one.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// The datastore failed.
    #[error("datastore")]
    Store(#[from] StoreError),
    /// Addresses could not be had, given back or verified.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// `CNI_NETNS` is the namespace of the host.
    #[error("CNI_NETNS={}: that is the host's own network namespace", path.display())]
    HostNetns {
        /// As given.
        path: PathBuf,
    },
    /// `CNI_NETNS` cannot be used.
    #[error("CNI_NETNS")]
    Netns(#[from] NetnsError),
    /// The attachment exists and is alive.
    #[error("{attachment} is attached already; DEL comes before another ADD")]
    AlreadyAdded {
        /// Which attachment.
        attachment: Attachment,
    },
    /// CHECK of something that no ADD made.
    #[error("there is no endpoint {attachment}")]
    NotAdded {
        /// Which attachment.
        attachment: Attachment,
    },
    /// CHECK found things that are not as ADD left them.
    #[error("{}", findings.join("; "))]
    Mismatch {
        /// Each in words that name the thing.
        findings: Vec<String>,
    },
    /// The pod's addresses cannot be used with the MTU that was found.
    #[error(transparent)]
    Mtu(#[from] MtuTooSmall),
    /// Somebody else has a link by the name of the host veth.
    #[error("link {name} exists and is not margay's: its alias is {alias:?}")]
    ForeignLink {
        /// Its name.
        name: String,
        /// Its alias.
        alias: String,
    },
    /// The name of the pod's interface, or of the host veth, is taken.
    #[error("interface {ifname} exists in the pod's network namespace already")]
    InterfaceExists {
        /// `CNI_IFNAME`.
        ifname: String,
        /// What the kernel said.
        #[source]
        source: NetlinkError,
    },
    /// A link was deleted while it was being set up.
    #[error("link {name} vanished while it was being set up")]
    LinkVanished {
        /// Its name.
        name: String,
    },
    /// The attachment's lock cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What is to be removed from the datastore later cannot be written down or read.
    #[error(transparent)]
    Deletion(#[from] DeletionError),
    /// A directory cannot be written to.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The kernel refused a change of links.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's end cannot be set up or looked at.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The host's end cannot be set up.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The pod's bandwidth cannot be limited.
    #[error(transparent)]
    Shaping(#[from] ShapingError),
    /// A sysctl of the host cannot be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The dataplane cannot be used.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Masquerading cannot be set up or looked at.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// No runtime for netlink.
    #[error("start the netlink runtime")]
    Runtime(#[source] std::io::Error),
    /// STATUS found a reason why an ADD would fail.
    #[error("an ADD would fail")]
    Unavailable(#[source] Box<Error>),
    /// A test asked for this failure.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl Error {
    /// The error as the answer to a STATUS: what is wrong with the call itself stays what it is.
    #[must_use]
    pub fn into_status(self) -> Self {
        match self {
            Self::Protocol(_) | Self::Config(_) | Self::Args(_) | Self::Unavailable(_) => self,
            other => Self::Unavailable(Box::new(other)),
        }
    }

    /// Whether a datastore that other machines keep could not be reached or written to.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        self.of_the_datastore().is_some_and(StoreError::is_out_of_reach)
    }

    /// Whether the datastore's file is damaged, or is none.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let error = self.of_the_datastore();
        matches!(error, Some(StoreError::Backend(BackendError::Damaged { .. })))
    }

    /// Whether others keep the datastore busy, so that each request waits for long.
    pub(crate) fn is_busy(&self) -> bool {
        self.of_the_datastore().is_some_and(StoreError::is_transient)
    }

    fn of_the_datastore(&self) -> Option<&StoreError> {
        use margay_datastore::IpamError as Allocator;
        match self {
            Self::Store(error)
            | Self::Ipam(IpamError::Store(error) | IpamError::Allocator(Allocator::Store(error))) => {
                Some(error)
            }
            _ => None,
        }
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        Self::Store(error.into())
    }
}

/// The error as CNI knows it: code, message and, in the details, the whole chain of causes.
impl From<&Error> for CniError {
    fn from(error: &Error) -> Self {
        let details = explained(error);
        match error {
            Error::Protocol(error) => protocol(error, details),
            Error::Config(ConfigError::Unsupported { .. }) => {
                Self::UnsupportedNetworkConfiguration(details)
            }
            Error::Config(_) | Error::Unsettled(_) | Error::Mtu(_) => {
                Self::InvalidNetworkConfig(details)
            }
            Error::Args(_) | Error::Attachment(_) => Self::InvalidEnvValue(details),
            Error::Store(error) => store(error, details),
            Error::Ipam(error) => ipam(error, details),
            Error::HostNetns { .. } | Error::Netns(_) => Self::InvalidEnvValue(details),
            Error::AlreadyAdded { .. } => {
                custom(code::ALREADY_EXISTS, "Attachment already exists", details)
            }
            Error::NotAdded { .. } => Self::NotExist(details),
            Error::Mismatch { .. } => custom(code::MISMATCH, "Not as ADD left it", details),
            Error::Dataplane(_) => custom(code::DATAPLANE, "eBPF dataplane", details),
            Error::Lock(_)
            | Error::Nat(NatError::Lock(_))
            | Error::Deletion(_)
            | Error::Directory(_)
            | Error::Sysctl(_)
            | Error::Pod(PodError::Sysctl(_) | PodError::Netns(_) | PodError::Runtime(_))
            | Error::Runtime(_) => Self::IOFailure(details),
            Error::ForeignLink { .. }
            | Error::InterfaceExists { .. }
            | Error::LinkVanished { .. }
            | Error::Netlink(_)
            | Error::Pod(_)
            | Error::Shaping(_)
            | Error::Host(_) => custom(code::NETLINK, "Kernel network configuration", details),
            Error::Nat(_) => custom(code::NAT, "NAT of outgoing traffic", details),
            Error::Unavailable(_) => Self::PluginNotAvailable(details),
            Error::Injected(_) => custom(code::INJECTED, "fail point", details),
        }
    }
}

fn protocol(error: &ProtocolError, details: String) -> CniError {
    match error {
        ProtocolError::Version { .. } | ProtocolError::VersionTooOld { .. } => {
            CniError::IncompatibleVersion(details)
        }
        ProtocolError::Environment { .. } | ProtocolError::Missing { .. } => {
            CniError::InvalidEnvValue(details)
        }
        ProtocolError::Read(_) => CniError::IOFailure(details),
        ProtocolError::Decode(_) | ProtocolError::MalformedVersion { .. } => {
            CniError::FailedToDecode(details)
        }
        ProtocolError::TooLong | ProtocolError::NotAnObject => {
            CniError::InvalidNetworkConfig(details)
        }
    }
}

fn store(error: &StoreError, details: String) -> CniError {
    match error {
        error if error.is_transient() => CniError::TryAgainLater(details),
        _ => CniError::IOFailure(details),
    }
}

fn ipam(error: &IpamError, details: String) -> CniError {
    use margay_datastore::IpamError as Allocator;
    match error {
        IpamError::Allocator(error) if error.is_transient() => CniError::TryAgainLater(details),
        IpamError::Store(error) | IpamError::Allocator(Allocator::Store(error)) => {
            store(error, details)
        }
        IpamError::Allocator(Allocator::Pool(_)) | IpamError::NoGateway { .. } => {
            CniError::InvalidNetworkConfig(details)
        }
        IpamError::Allocator(Allocator::AlreadyAssigned { .. }) => {
            custom(code::ALREADY_EXISTS, "Attachment already exists", details)
        }
        IpamError::Allocator(_) | IpamError::NoneLeft { .. } => {
            custom(code::NO_ADDRESS, "No address available", details)
        }
        IpamError::Mismatch { .. } => custom(code::MISMATCH, "Not as ADD left it", details),
        IpamError::BootId { .. } | IpamError::Etcd(_) => CniError::IOFailure(details),
        IpamError::Reported { plugin, code, msg, details } => {
            custom(*code, &format!("IPAM plugin {plugin}: {msg}"), details.clone())
        }
        IpamError::NotFound { .. }
        | IpamError::Run { .. }
        | IpamError::Failed { .. }
        | IpamError::Result { .. } => custom(code::DELEGATED, "IPAM plugin failed", details),
    }
}

fn custom(code: u32, msg: &str, details: String) -> CniError {
    CniError::Custom(code, msg.to_owned(), details)
}

/// [`chain`], and what confines the process if it was refused something that root may do.
#[must_use]
pub fn explained(error: &Error) -> String {
    let mut text = chain(error);
    if let Some(confinement) = confinement::of_refusal(error) {
        text.push_str("; what may refuse it: ");
        text.push_str(&confinement);
    }
    text
}

/// The error and its causes, outermost first, in one line: control characters, which can come in
/// with whatever an error quotes, are escaped.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.contains(char::is_control) { escaped(&text) } else { text }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(error: impl Into<Error>) -> u32 {
        u32::from(&CniError::from(&error.into()))
    }

    #[test]
    fn configuration_errors_are_of_code_2_or_7() {
        let field = || "x".to_owned();
        assert_eq!(number(ConfigError::Missing { field: field(), reason: "y" }), 7);
        assert_eq!(number(ConfigError::Unknown { field: field(), nearest: None }), 7);
        let unsupported = ConfigError::Unsupported { field: field(), value: field(), reason: "y" };
        assert_eq!(number(unsupported), 2);
    }

    #[test]
    fn a_busy_datastore_is_of_code_11_and_a_broken_one_of_code_5() {
        let busy = || BackendError::Busy { operation: "get".into(), source: "locked".into() };
        assert_eq!(number(busy()), 11);
        assert_eq!(number(IpamError::from(margay_datastore::IpamError::from(busy()))), 11);
        let broken = BackendError::Damaged { operation: "get".into(), source: "x".into() };
        assert_eq!(number(broken), 5);
    }

    #[test]
    fn addresses_that_are_not_to_be_had_are_of_code_101() {
        let exhausted = margay_datastore::IpamError::Exhausted { pools: Vec::new() };
        assert_eq!(number(IpamError::from(exhausted)), code::NO_ADDRESS);
    }

    #[test]
    fn what_an_error_quotes_does_not_break_its_line() {
        let unknown = ConfigError::Unknown { field: "mt\nu\u{1b}[2J é".into(), nearest: None };

        let text = chain(&Error::from(unknown));

        let wanted = r"network configuration: mt\nu\u{1b}[2J é is not a key margay knows";
        assert_eq!(text, wanted);
    }

    #[test]
    fn the_details_hold_the_whole_chain() {
        let pools = vec!["10.0.0.0/8".parse().unwrap()];
        let exhausted = margay_datastore::IpamError::Exhausted { pools };
        let error = Error::from(IpamError::from(exhausted)).into_status();

        let error = CniError::from(&error);

        assert_eq!(u32::from(&error), 50);
        assert_eq!(
            error.details(),
            "an ADD would fail: margay-ipam: no free addresses in 10.0.0.0/8"
        );
    }
}
