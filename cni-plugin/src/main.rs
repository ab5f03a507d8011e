//! `margay`, the network plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    margay::protocol::run(&margay::commands::Margay, "margay")
}
