//! The kernel half, embedded by the build script.
//!
//! Invariant: an empty object means that this build has none (a debug build without
//! `cargo xtask build-ebpf`); a release build always has one.

use crate::DatapathError;

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// One build of the kernel half.
#[derive(Clone, Copy)]
pub(crate) struct Build {
    /// Names the build in the pin path: the first 12 hex digits of the object's SHA-256.
    pub(crate) id: &'static str,
    /// The ELF object, aligned to 8 bytes.
    pub(crate) object: &'static [u8],
}

impl Build {
    /// Name of the embedded build; empty where there is none.
    pub(crate) const ID: &str = BUILD_ID;

    pub(crate) fn embedded() -> Result<Self, DatapathError> {
        if OBJECT.is_empty() {
            return Err(DatapathError::NoObject);
        }
        Ok(Self { id: BUILD_ID, object: OBJECT })
    }
}
