//! Every way a verb can fail, and the one place that chooses CNI's error codes.
//!
//! The specification's codes are below 100; margay's own are the constants of [`code`].

use rscni_types::error::Error as CniError;

use crate::args::ArgsError;
use crate::config::ConfigError;
use crate::phases::Injected;
use crate::protocol::ProtocolError;

/// margay's own error codes.
pub mod code {
    /// The attachment exists and is alive: a second ADD.
    pub const ALREADY_EXISTS: u32 = 100;
    /// No address is left in the pools, or the one that was asked for is not to be had.
    pub const NO_ADDRESS: u32 = 101;
    /// The eBPF data path cannot be loaded or attached.
    pub const DATAPLANE: u32 = 102;
    /// The kernel refused a change of links, addresses, routes or neighbours.
    pub const NETLINK: u32 = 103;
    /// CHECK found something that is not as ADD left it.
    pub const MISMATCH: u32 = 104;
    /// A delegated plugin could not be run or gave no answer that can be read. An error that it
    /// reports keeps its own code.
    pub const DELEGATED: u32 = 105;
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
    #[error("network configuration: {0}")]
    Config(#[from] ConfigError),
    /// `CNI_ARGS` is refused.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// A test asked for this failure.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// The error as CNI knows it: code, message and, in the details, the whole chain of causes.
impl From<&Error> for CniError {
    fn from(error: &Error) -> Self {
        let details = chain(error);
        match error {
            Error::Protocol(error) => match error {
                ProtocolError::Version { .. } | ProtocolError::VersionTooOld { .. } => {
                    Self::IncompatibleVersion(details)
                }
                ProtocolError::Environment { .. } | ProtocolError::Missing { .. } => {
                    Self::InvalidEnvValue(details)
                }
                ProtocolError::Read(_) => Self::IOFailure(details),
                ProtocolError::Decode(_) | ProtocolError::MalformedVersion { .. } => {
                    Self::FailedToDecode(details)
                }
                ProtocolError::TooLong | ProtocolError::NotAnObject => {
                    Self::InvalidNetworkConfig(details)
                }
            },
            Error::Config(ConfigError::Unsupported { .. }) => {
                Self::UnsupportedNetworkConfiguration(details)
            }
            Error::Config(_) => Self::InvalidNetworkConfig(details),
            Error::Args(_) => Self::InvalidEnvValue(details),
            Error::Injected(_) => Self::Custom(code::INJECTED, "fail point".into(), details),
        }
    }
}

/// The error and its causes, outermost first, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
