//! `margayctl endpoint`: pods' interfaces.

mod details;
mod list;

use clap::Subcommand;

use crate::failure::Failure;
use crate::node::Node;
use crate::output::Format;
pub(crate) use list::Row;

/// Pods' interfaces.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the pods of this node, or of all: addresses, host interface, state
    List(list::List),
    /// Shows all that there is of one pod: record, interfaces, routes, map entries, programs, bandwidth
    Show(details::Show),
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list::run(arguments, node, format).await,
        Command::Show(arguments) => details::run(arguments, node, format).await,
    }
}
