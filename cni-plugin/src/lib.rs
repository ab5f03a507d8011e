//! (skeleton)
#![deny(unsafe_code)]
pub mod host;
pub mod lock;
pub mod mtu;
pub mod netlink;
pub mod netns;
pub mod pod;
pub mod sysctl;
