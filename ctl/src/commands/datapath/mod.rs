//! `margayctl datapath`: what is pinned and what it has counted.

mod counters;
mod flows;
mod maps;
mod programs;

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
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::Maps(arguments) => maps::run(arguments, node, format).await,
        Command::Flows(arguments) => flows::run(arguments, node, format).await,
        Command::Programs(arguments) => programs::run(arguments, node, format).await,
        Command::Counters(arguments) => counters::run(arguments, node, format).await,
    }
}
