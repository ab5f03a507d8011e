//! `margayctl ipam`: addresses, who has them, and what of the records contradicts itself.

mod check;
mod contradictions;
mod release;
mod show;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;
use crate::node::Node;
use crate::output::Format;

/// Addresses.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pools and blocks and how full they are, the addresses of a block, or who has an address
    Show(show::Show),
    /// What of blocks, handles, endpoints and map entries contradicts each other
    Check(check::Check),
    /// Takes an address back that nobody uses any more, or all addresses of an attachment
    Release(release::Release),
}

pub(crate) async fn run(
    command: &Command,
    node: &Node,
    format: Format,
) -> Result<ExitCode, Failure> {
    match command {
        Command::Show(arguments) => show::run(arguments, node, format).await?,
        Command::Check(arguments) => return check::run(arguments, node, format).await,
        Command::Release(arguments) => release::run(arguments, node, format).await?,
    }
    Ok(ExitCode::SUCCESS)
}
