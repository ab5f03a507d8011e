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
    /// Those of this node, or of all
    List(list::List),
    /// All that there is of one: record, interfaces, routes, map entries, programs, bandwidth
    Show(details::Show),
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::List(arguments) => list::run(arguments, node, format).await,
        Command::Show(arguments) => details::run(arguments, node, format).await,
    }
}
