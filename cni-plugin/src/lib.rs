//! margay's CNI plugins: the network plugin `margay` and the IPAM plugin `margay-ipam`.
#![deny(unsafe_code)]

pub mod args;
pub mod boot_clock;
pub mod commands;
pub mod config;
pub mod confinement;
pub mod dataplane;
pub mod deletions;
pub mod directories;
pub mod error;
pub mod forwarding;
pub mod hold;
pub mod host;
pub mod inspection;
pub mod ipam;
pub mod lock;
pub mod log;
pub mod mtu;
pub mod naming;
pub mod nat;
pub mod netlink;
pub mod netns;
pub mod phases;
pub mod pod;
pub mod protocol;
pub mod result;
pub mod shaping;
pub mod sysctl;
pub mod upkeep;
