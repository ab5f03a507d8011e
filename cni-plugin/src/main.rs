//! `margay`, the network plugin. Started by the name `margay-ipam` it is the IPAM plugin, so that a
//! host has one executable and the two are always of one version.

use std::path::Path;
use std::process::ExitCode;

use margay::{commands::Margay, ipam::MargayIpam, protocol};

fn main() -> ExitCode {
    let started_as = std::env::args_os().next().unwrap_or_default();
    match Path::new(&started_as).file_name() {
        Some(name) if name == "margay-ipam" => protocol::run(&MargayIpam, "margay-ipam"),
        _ => protocol::run(&Margay, "margay"),
    }
}
