//! Sysctls of the calling thread's network namespace, as files under `/proc/sys/net`.
//!
//! A file is written only if it holds something else: a write costs more than a read (some of
//! these walk every interface), and a read-only `/proc/sys` that is right already is no error.

use std::path::PathBuf;
use std::{fs, io};

use margay_failpoints as failpoints;

/// A sysctl that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} sysctl {key}")]
pub struct SysctlError {
    operation: &'static str,
    key: String,
    #[source]
    source: io::Error,
}

/// Makes sure that a sysctl has a value. `key` is a path below `/proc/sys/net`, such as
/// `ipv4/conf/eth0/forwarding`: not with dots, since interface names may hold some.
///
/// # Errors
/// When it cannot be read or written.
pub fn ensure(key: &str, value: &str) -> Result<(), SysctlError> {
    if get(key)? == value {
        return Ok(());
    }
    failpoints::before(failpoints::Kind::Sysctl, key)
        .and_then(|()| fs::write(path(key), value))
        .map_err(|source| failed("write", key, source))
}

/// The value of a sysctl, without white space around it.
///
/// # Errors
/// When it cannot be read.
pub fn get(key: &str) -> Result<String, SysctlError> {
    match fs::read_to_string(path(key)) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(source) => Err(failed("read", key, source)),
    }
}

/// Whether an interface has IPv6: not where the kernel has none, nor with an MTU below 1280.
#[must_use]
pub fn has_ipv6(interface: &str) -> bool {
    path("ipv6/conf").join(interface).exists()
}

// `/proc/sys/net` follows the network namespace of the thread that opens it.
fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

fn failed(operation: &'static str, key: &str, source: io::Error) -> SysctlError {
    SysctlError { operation, key: format!("net/{key}"), source }
}
