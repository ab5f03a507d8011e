//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    bundle, completion, datapath, doctor, endpoint, ipam, man, monitor, node, pool, status, trace,
    uninstall,
};
use crate::output::Format;

/// Where runtimes look for network configurations.
const CONF_DIR: &str = "/etc/cni/net.d";
/// The agent's configuration, on a node among several.
const AGENT_CONF: &str = "/etc/margay/agent.json";

/// Shows what margay has on this node, says what is wrong, and what becomes of a packet.
#[derive(Debug, Parser)]
#[command(name = "margayctl", version, propagate_version = true, max_term_width = 100, after_help = BEGIN)]
pub struct Arguments {
    /// What is the same for every command.
    #[command(flatten)]
    pub(crate) shared: Shared,
    /// Which command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Below the list of commands, for who has never seen it.
const BEGIN: &str = "\
To begin with:
  margayctl status                 the node on one screen
  margayctl doctor                 what is wrong, and what to do about it
  margayctl endpoint list          the pods, their addresses and interfaces
  margayctl trace POD ADDRESS      what would become of a packet

Exit code: 0; 1 where the command failed, 2 where its arguments are refused. doctor and ipam check end with 10 where there
are warnings, 20 where there are errors. Most of it takes root: what a command could not see without, it says.";

/// What is the same for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Shared {
    /// Network configuration: a file, or the folder that the runtime takes it from
    #[arg(long, global = true, value_name = "PATH", default_value = CONF_DIR)]
    pub(crate) config: PathBuf,
    /// The agent's configuration, where the node has an agent
    #[arg(long, global = true, value_name = "FILE", default_value = AGENT_CONF)]
    pub(crate) agent_config: PathBuf,
    /// Text for people, or a document for scripts
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Showing something again and again.
#[derive(Debug, Args)]
pub(crate) struct Watched {
    /// Show it again when it changes, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// How often to look, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) interval: Duration,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(status::Status),
    Doctor(doctor::Doctor),
    /// Pods' interfaces: on this node, or on every node
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Addresses: who has them, and what contradicts itself
    #[command(subcommand)]
    Ipam(ipam::Command),
    /// Ranges that addresses come from
    #[command(subcommand)]
    Pool(pool::Command),
    /// The nodes that share the datastore
    #[command(subcommand)]
    Node(node::Command),
    /// Maps and programs, and what they have counted
    #[command(subcommand)]
    Datapath(datapath::Command),
    Bundle(bundle::Bundle),
    Uninstall(uninstall::Uninstall),
    /// What a shell needs to complete this command line, to standard output
    Completion(completion::Completion),
    /// Writes the manual pages, one for each command
    Man(man::Man),
    Monitor(monitor::Arguments),
    /// What would become of a packet, by the programs' own code; nothing is sent. Needs root
    Trace(trace::Arguments),
}

/// As good as no end, and still a time that a clock can be set to.
pub(crate) const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).ok();
    duration
        .filter(|duration| (Duration::from_millis(100)..=CENTURY).contains(duration))
        .ok_or_else(|| format!("must be from 0.1 to {} seconds", CENTURY.as_secs()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_one_that_clap_can_keep() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_interval_is_from_a_tenth_of_a_second_to_a_century() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "NaN", "inf", "1e10", "1e19", "1e300", "two", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
