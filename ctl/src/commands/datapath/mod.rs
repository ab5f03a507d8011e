//! `margayctl datapath`: what is pinned and what it has counted; and replacing it or taking it away.

mod counters;
pub(super) mod flows;
mod maps;
mod programs;
mod unload;
mod upgrade;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;
use crate::node::Node;
use crate::output::Format;

/// Maps and programs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The pinned maps: how full they are, what memory they take
    Maps(maps::Maps),
    /// What the programs remember of flows
    Flows(flows::Flows),
    /// The pinned programs: how large they are, where they are attached, how long they ran
    Programs(programs::Programs),
    /// What became of packets; with --watch, how many a second
    Counters(counters::Counters),
    Upgrade(upgrade::Upgrade),
    Unload(unload::Unload),
}

pub(crate) async fn run(
    command: &Command,
    node: &Node,
    format: Format,
) -> Result<ExitCode, Failure> {
    match command {
        Command::Maps(arguments) => maps::run(arguments, node, format).await?,
        Command::Flows(arguments) => flows::run(arguments, node, format).await?,
        Command::Programs(arguments) => programs::run(arguments, node, format).await?,
        Command::Counters(arguments) => counters::run(arguments, node, format).await?,
        Command::Upgrade(arguments) => return upgrade::run(arguments, node, format).await,
        Command::Unload(arguments) => return unload::run(arguments, node, format).await,
    }
    Ok(ExitCode::SUCCESS)
}
