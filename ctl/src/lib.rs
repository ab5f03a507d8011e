//! What a person types on a node: what there is, what is wrong with it, and what becomes of a packet.
//!
//! Each command is a file below `commands/`. It looks at the node (`node`), makes a report of it (`output`), and the report
//! is printed as text for people, as JSON or as YAML: so whatever a person gets to see, a script can have. Invariant: a
//! command that only looks changes nothing, not even by making a datastore or a directory that is missing. The one exception is
//! `monitor`, which makes lock files, takes a slot for its program, and says in the map `settings` that it listens.
#![deny(unsafe_code)]

mod arguments;
mod commands;
mod doctor;
mod endpoints;
mod failure;
mod firewall;
mod node;
mod output;

use std::process::ExitCode;

pub use arguments::Arguments;
use failure::Failure;

/// Runs a command; its exit code is that of the process.
pub async fn run(arguments: &Arguments) -> ExitCode {
    match commands::run(arguments).await {
        Ok(code) => code,
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit_code())
        }
    }
}
