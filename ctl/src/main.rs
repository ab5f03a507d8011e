//! `margayctl`, the operator's command line.

use std::process::ExitCode;

use clap::Parser;
use margayctl::Arguments;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    margayctl::run(&Arguments::parse()).await
}
