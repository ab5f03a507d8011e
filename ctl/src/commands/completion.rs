//! `margayctl completion`: what a shell needs to complete this command line.

use std::io::Write as _;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::failure::Failure;

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(completion: &Completion) -> Result<(), Failure> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(completion.shell, &mut command, name, &mut script);
    std::io::stdout().lock().write_all(&script).map_err(Failure::Output)
}
