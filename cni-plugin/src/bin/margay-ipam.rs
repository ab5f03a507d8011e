//! The IPAM plugin `margay-ipam`.

use std::process::ExitCode;

fn main() -> ExitCode {
    margay::protocol::run(&margay::ipam::MargayIpam, "margay-ipam")
}
