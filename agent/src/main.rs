//! `margay-agent`, the daemon that each node of a cluster of several nodes runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use margay_agent::{agent, configuration};

/// Makes the pods of all nodes reach each other.
#[derive(Debug, Parser)]
#[command(name = "margay-agent", version)]
struct Arguments {
    /// Configuration file, JSON; without it, the defaults count
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = configuration::read(arguments.config.as_deref()).map_err(Into::into);
    match outcome.and_then(|conf| agent::run(&conf)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("margay-agent: {}", margay::error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const UNIT: &str = include_str!("../../conf/margay-agent.service");

    #[test]
    fn the_unit_starts_the_agent_with_its_configuration() {
        let command = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();

        let arguments = Arguments::try_parse_from(command.split_whitespace()).unwrap();

        assert_eq!(arguments.config.as_deref(), Some(Path::new("/etc/margay/agent.json")));
        // It tells when it has started (`notify.rs`), so that a configuration that is refused is an error of `start`.
        for line in ["Type=notify", "KillMode=process"] {
            assert!(UNIT.lines().any(|of_unit| of_unit == line), "{line}");
        }
    }
}
