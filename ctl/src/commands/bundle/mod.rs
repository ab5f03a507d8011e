//! `margayctl bundle`: all that somebody needs who is asked for help, without what is nobody's business.

mod archive;
mod looks;
mod maps;
mod network;
mod secrets;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use archive::Archive;
use clap::Args;
use margay_abi::ABI_VERSION;
use margay_datapath::Datapath;
use margay_datastore::BlockEntry;
use secrets::Secrets;
use serde_json::{Value, json};

use super::doctor::BIN_DIR;
use super::status;
use crate::arguments::Shared;
use crate::doctor::{self, Depth, Picture};
use crate::failure::Failure;
use crate::node::Node;

/// How much of the log's end is taken.
const LOG_END_BYTES: u64 = 1 << 20;

const README: &str = "\
A support archive of margayctl bundle.

doctor.json         what is wrong with the node
status.json         the node on one screen
versions.json       releases, builds, kernel
configuration/      networks and the agent's configuration, without secrets
endpoints.json      records of this node's pods
pools.json, blocks.json, placements.json, nodes.json
                    address management, and the other nodes
maps/               what the programs know; of flows, how many of which kind, and
                    each of them with --flows alone
filters.json        what is attached to pods' interfaces, anybody's
links.json, addresses.json, routes.json, sysctls.json
                    the host's network
firewall/           margay's own table, and every chain that forwarded packets pass
log.txt             the end of the plugin's log

Passwords, tokens and keys were taken out of everything, wherever they stood. Names and
addresses of pods are in it.
";

/// Writes a support archive: versions, configurations without secrets, records, maps, filters, routes, logs
#[derive(Debug, Args)]
pub(crate) struct Bundle {
    /// Where to write it. A file that is there is left alone
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Put every flow in, with both ends' addresses and ports: who spoke with whom
    #[arg(long)]
    flows: bool,
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
}

pub(crate) async fn run(bundle: &Bundle, shared: &Shared, node: &Node) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = node.settings().map_or("node".to_owned(), |settings| settings.nodename);
    let folder = format!("margay-{name}-{now}");
    let file = bundle.file.clone().unwrap_or_else(|| format!("{folder}.tar.gz").into());
    let failed = |source| Failure::Write { path: file.clone(), source };

    let mut secrets = Secrets::default();
    let configurations = configurations(shared, node, &mut secrets);
    let mut archive = Archive::create(&file, &folder, now, secrets).map_err(failed)?;
    let write = async {
        archive.text("README.txt", README)?;
        for (name, document) in &configurations {
            archive.json(&format!("configuration/{name}"), document)?;
        }
        let overview = status::overview(shared, &bundle.bin_dir).await;
        archive.json("status.json", &overview)?;
        let examined =
            doctor::examine(node, &shared.agent_config, &bundle.bin_dir, Depth::Deep).await;
        let (picture, diagnosis) = examined;
        archive.json("doctor.json", &diagnosis)?;
        if let Some(picture) = &picture {
            add_records(&mut archive, picture)?;
            network::add(&mut archive, picture).await?;
            maps::add(&mut archive, picture, bundle.flows)?;
            add_log(&mut archive, picture)?;
        }
        archive.finish()
    };
    if let Err(error) = write.await {
        // Half of one helps nobody.
        _ = fs::remove_file(&file);
        return Err(failed(error));
    }
    anstream::println!("{}", file.display());
    Ok(())
}

/// Every file that is one, by its name, without secrets.
fn configurations(shared: &Shared, node: &Node, secrets: &mut Secrets) -> Vec<(String, Value)> {
    let agents = shared.agent_config.exists().then(|| shared.agent_config.clone());
    let mut configurations = Vec::new();
    for file in node.files.iter().chain(&agents) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(file);
        let document = match text.map(|text| serde_json::from_str::<Value>(&text)) {
            Ok(Ok(document)) => secrets.take_from(&document),
            // Where a secret is in it, nobody can tell.
            Ok(Err(error)) => json!({"left out": format!("not JSON: {error}")}),
            Err(error) => json!({"left out": error.to_string()}),
        };
        configurations.push((name, document));
    }
    configurations
}

fn add_records(archive: &mut Archive, picture: &Picture<'_>) -> io::Result<()> {
    let kernel = rustix::system::uname();
    archive.json(
        "versions.json",
        &json!({
            "margayctl": env!("CARGO_PKG_VERSION"),
            "abi_version": ABI_VERSION,
            "build": Datapath::embedded_build().ok(),
            "builds": picture.builds.iter().map(|build| json!({
                "abi_version": build.abi_version,
                "build": build.build,
                "programs": build.programs.iter().map(|id| id.0).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "kernel": kernel.release().to_string_lossy(),
            "kernel_version": kernel.version().to_string_lossy(),
            "machine": kernel.machine().to_string_lossy(),
        }),
    )?;
    archive.json("endpoints.json", &picture.endpoints)?;
    archive.json("pools.json", &picture.pools)?;
    archive.json("nodes.json", &picture.nodes)?;
    let block = |block: &BlockEntry| {
        let BlockEntry { cidr, node, claimed_by, taken, .. } = block;
        json!({"cidr": cidr, "node": node, "claimed_by": claimed_by, "taken": taken.len()})
    };
    let blocks: Vec<Value> = picture.ledger.blocks.iter().map(block).collect();
    archive.json("blocks.json", &blocks)?;
    archive.json("placements.json", &picture.placements)
}

fn add_log(archive: &mut Archive, picture: &Picture<'_>) -> io::Result<()> {
    let Some(log) = &picture.settings.log.file else { return Ok(()) };
    let text = status::end_of(log, LOG_END_BYTES);
    archive.text("log.txt", &text.unwrap_or_else(|error| format!("{}: {error}\n", log.display())))
}
