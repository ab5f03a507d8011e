//! The commands, one file each.

pub(crate) mod bundle;
pub(crate) mod completion;
pub(crate) mod datapath;
pub(crate) mod doctor;
pub(crate) mod endpoint;
pub(crate) mod ipam;
pub(crate) mod man;
pub(crate) mod monitor;
pub(crate) mod node;
pub(crate) mod pool;
pub(crate) mod status;
pub(crate) mod trace;
pub(crate) mod uninstall;

use std::process::ExitCode;

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;
use crate::node::Node;

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let node = match &arguments.command {
        Command::Doctor(_) | Command::Ipam(_) | Command::Pool(_) | Command::Bundle(_) => {
            Node::find_with_pools(&arguments.shared)
        }
        // A datastore that is out of reach keeps nobody waiting who needs nothing of it.
        _ => Node::find(&arguments.shared),
    };
    let format = arguments.shared.output;
    match &arguments.command {
        Command::Status(status) => status::run(status, &arguments.shared, format).await?,
        Command::Doctor(doctor) => {
            let agent_config = &arguments.shared.agent_config;
            return doctor::run(doctor, agent_config, &node, format).await;
        }
        Command::Endpoint(command) => endpoint::run(command, &node, format).await?,
        Command::Ipam(command) => return ipam::run(command, &node, format).await,
        Command::Pool(command) => pool::run(command, &node, format).await?,
        Command::Node(command) => node::run(command, &node, format).await?,
        Command::Datapath(command) => return datapath::run(command, &node, format).await,
        Command::Bundle(bundle) => bundle::run(bundle, &arguments.shared, &node).await?,
        Command::Uninstall(uninstall) => return uninstall::run(uninstall),
        Command::Completion(arguments) => completion::run(arguments)?,
        Command::Man(arguments) => man::run(arguments)?,
        Command::Monitor(arguments) => return monitor::run(arguments, &node, format).await,
        Command::Trace(arguments) => trace::run(arguments, &node, format).await?,
    }
    Ok(ExitCode::SUCCESS)
}
