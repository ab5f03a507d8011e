//! The real `margayctl` on a real node: what it shows is what there is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod bundle;
mod command_line;
mod datapath;
mod doctor;
mod documented;
mod documents;
mod endpoints;
mod fields;
mod monitor;
mod nodes;
mod pools;
mod status;
mod trace;
mod uninstall;
mod unprivileged;
mod upgrade;
