//! margay's CNI plugins: the network plugin `margay` and the IPAM plugin `margay-ipam`.
#![deny(unsafe_code)]

pub mod args;
pub mod config;
pub mod error;
pub mod host;
pub mod lock;
pub mod log;
pub mod mtu;
pub mod netlink;
pub mod netns;
pub mod pod;
pub mod phases;
pub mod protocol;
pub mod sysctl;
