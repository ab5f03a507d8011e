//! `margayctl man`: the manual pages, one for each command.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::arguments::Arguments;
use crate::failure::Failure;

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where to write them; made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn run(man: &Man) -> Result<(), Failure> {
    let written = fs::create_dir_all(&man.folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), &man.folder));
    written.map_err(|source| Failure::Write { path: man.folder.clone(), source })
}
