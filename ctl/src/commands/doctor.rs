//! `margayctl doctor`: what is wrong with this node, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::doctor::{self, Depth, Gravity, Kind};
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, Report, Table};

/// Where runtimes look for plugins.
pub(crate) const BIN_DIR: &str = "/opt/cni/bin";

/// Says what is wrong with this node, and what to do about it
///
/// Looks at the configurations, the datastore, the programs and maps, every endpoint by what CHECK looks at, what
/// belongs to nobody, and the host around. Exit code: 0 if nothing is wrong but notes, 10 with warnings, 20 with
/// errors; 1 if the node could not be looked at, 2 for arguments that are refused.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Put right what can be without harm, and say what is left
    #[arg(long)]
    fix: bool,
    /// Only list what can be found
    #[arg(long, conflicts_with = "fix")]
    list: bool,
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
}

pub(crate) async fn run(
    arguments: &Doctor,
    agent_config: &Path,
    node: &Node,
    format: Format,
) -> Result<ExitCode, Failure> {
    if arguments.list {
        output::show(&Catalogue { findings: doctor::ALL }, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let bin_dir = &arguments.bin_dir;
    let examine = async || doctor::examine(node, agent_config, bin_dir, Depth::Deep).await.1;
    let mut diagnosis = examine().await;
    if arguments.fix {
        let mended = doctor::mend(node, &diagnosis).await;
        diagnosis = examine().await;
        (diagnosis.done, diagnosis.failed) = (mended.done, mended.failed);
    }
    output::show(&diagnosis, format)?;
    Ok(ExitCode::from(diagnosis.verdict.exit_code()))
}

/// All that can be found.
#[derive(Serialize)]
struct Catalogue {
    findings: &'static [&'static Kind],
}

impl Report for Catalogue {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut table = Table::new(["FINDING", "GRAVITY", "MEANING"]);
        for kind in self.findings {
            let gravity = match kind.gravity {
                Gravity::Error => "error",
                Gravity::Warning => "warning",
                Gravity::Note => "note",
            };
            table.row([kind.id.into(), gravity.into(), Cell::from(kind.meaning)]);
        }
        write!(out, "{table}")
    }
}
