//! What the runtime and the agent are told, and what the runtime executes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use margay::config::{Dataplane, Datastore, IpamConf};
use margay::error::chain;
use margay::protocol::VERSIONS;

use super::catalogue::{
    AGENT_CONFIG_UNUSABLE, AGENT_DIFFERS, AGENT_MAP_SIZES, CONFIG_MISSING, CONFIG_NOT_FIRST,
    CONFIG_UNUSABLE, CONFIG_VERSION, PLUGIN_MISSING, PLUGIN_OTHER_VERSION,
};
use super::finding::Findings;
use crate::failure::Failure;
use crate::node::{Network, Node, Part};

const PLUGIN: &str = "margay";

/// What of the configurations needs no look at the node.
pub(super) fn look(node: &Node, agent_config: &Path, bin_dir: &Path, findings: &mut Findings) {
    for failure in &node.unusable {
        let is_agents =
            matches!(failure, Failure::Configuration { path, .. } if path == agent_config);
        let kind = if is_agents { &AGENT_CONFIG_UNUSABLE } else { &CONFIG_UNUSABLE };
        findings.add(kind, chain(failure));
    }
    if node.networks.is_empty() {
        let text = format!("{} has no network of margay's", node.config.display());
        findings.add(&CONFIG_MISSING, text);
    }
    look_at_order(node, findings);
    for network in &node.networks {
        look_at_version(network, findings);
    }
    look_at_plugins(node, bin_dir, findings);
    look_at_agent(node, findings);
}

/// The runtime takes the first file by name.
fn look_at_order(node: &Node, findings: &mut Findings) {
    let (Some(first), Some(ours)) = (node.files.first(), node.networks.first()) else { return };
    if *first != ours.file {
        let (first, ours) = (first.display(), ours.file.display());
        findings.add(&CONFIG_NOT_FIRST, format!("{first} comes before {ours}"));
    }
}

fn look_at_version(network: &Network, findings: &mut Findings) {
    let Some(version) = network.version.as_deref() else { return };
    if VERSIONS.iter().all(|known| known.to_string() != version) {
        let file = network.file.display();
        findings.add(&CONFIG_VERSION, format!("{file} says cniVersion {version:?}"));
    }
}

fn look_at_plugins(node: &Node, bin_dir: &Path, findings: &mut Findings) {
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for network in &node.networks {
        wanted.extend(network.chain.iter().map(String::as_str));
        wanted.insert(match &network.part {
            Part::Whole(conf) => match &conf.ipam {
                IpamConf::Builtin(_) => PLUGIN,
                IpamConf::Delegated(plugin) => plugin,
            },
            Part::Addresses(_) => "margay-ipam",
        });
    }
    for plugin in wanted {
        let path = bin_dir.join(plugin);
        if !is_executable(&path) {
            let text = format!("{} is no file that can be executed", path.display());
            findings.add(&PLUGIN_MISSING, text);
        } else if plugin == PLUGIN {
            look_at_release(&path, findings);
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Executed without a verb, a plugin says which it is.
fn look_at_release(path: &Path, findings: &mut Findings) {
    let output = Command::new(path).env_clear().stdin(Stdio::null()).output();
    let what = format!("the version of {}", path.display());
    let Some(output) = findings.or_note(&what, output) else { return };
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text);
    let about = text.lines().next().unwrap_or_default();
    let ours = concat!("v", env!("CARGO_PKG_VERSION"));
    if about.split_whitespace().last() != Some(ours) {
        let text = format!("{} says {about:?}, and this is margayctl {ours}", path.display());
        findings.add(&PLUGIN_OTHER_VERSION, text);
    }
}

/// Whose configuration lies there though nobody needs an agent, as after an install, is not asked.
fn look_at_agent(node: &Node, findings: &mut Findings) {
    let (Some(conf), Some(agent)) = (node.whole_networks().next(), &node.agent) else { return };
    let Datastore::Etcd(etcd) = &conf.datastore else { return };
    let differs = if conf.nodename != agent.nodename {
        Some(format!("nodename: {} and {}", conf.nodename, agent.nodename))
    } else if conf.paths != agent.paths {
        Some("state_dir, run_dir or bpffs_root".to_owned())
    } else {
        match &agent.datastore {
            Datastore::Local => Some("datastore_type: etcdv3 and local".to_owned()),
            Datastore::Etcd(of_agent) if of_agent.prefix != etcd.prefix => {
                Some(format!("etcd_prefix: {} and {}", etcd.prefix, of_agent.prefix))
            }
            Datastore::Etcd(_) => None,
        }
    };
    if let Some(differs) = differs {
        let text = format!("network {} and agent differ in {differs}", conf.name);
        findings.add(&AGENT_DIFFERS, text);
    }
    for (key, of_network, of_agent) in [
        ("max_pods", conf.max_pods, agent.max_pods),
        ("max_flows", conf.max_flows, agent.max_flows),
    ] {
        if of_network != of_agent && conf.dataplane != Dataplane::Linux {
            let name = &conf.name;
            let text =
                format!("{key} is {of_network} in network {name} and {of_agent} of the agent");
            findings.add(&AGENT_MAP_SIZES, text);
        }
    }
}
