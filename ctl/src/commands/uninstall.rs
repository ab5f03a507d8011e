//! `margayctl uninstall`: runs the installed uninstaller, after a look for pods that still run.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;
use margay::naming;

use crate::failure::Failure;

/// Below the prefix, as dist/paths.sh has it.
const UNINSTALLER: &str = "lib/margay/uninstall.sh";
/// How many pods are named.
const NAMED: usize = 5;

/// Uninstalls margay from this node. Addresses, endpoints, logs and edited configurations stay
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Where margay keeps what is its own, as it was installed
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = super::doctor::BIN_DIR)]
    bin_dir: PathBuf,
    /// Where the runtime looks for networks
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Everything is below this directory, where another system is
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Go on though pods are left: they keep their network, but nothing can remove them properly
    #[arg(long)]
    force: bool,
    /// Take away everything, addresses and logs and edits too
    #[arg(long)]
    purge: bool,
}

pub(crate) fn run(uninstall: &Uninstall) -> Result<ExitCode, Failure> {
    let root = uninstall.root.clone().unwrap_or_else(|| "/".into());
    let prefix = uninstall.prefix.strip_prefix("/").unwrap_or(&uninstall.prefix);
    let script = root.join(prefix).join(UNINSTALLER);
    if !script.is_file() {
        let reason =
            format!("{} is not there: nothing was installed with this prefix", script.display());
        let hint =
            "name the --prefix that install.sh was given, or run uninstall.sh of the release";
        return Err(Failure::Harmful { reason, hint });
    }
    let pods = pods();
    if !pods.is_empty() && !uninstall.force {
        let named = pods[..pods.len().min(NAMED)].join(", ");
        let more = if pods.len() > NAMED { ", …" } else { "" };
        let reason = format!("{} pods run on this node: {named}{more}", pods.len());
        let hint = "have the runtime remove them (kubectl drain), or --force; \
                    margayctl endpoint list names them";
        return Err(Failure::Harmful { reason, hint });
    }
    let mut command = Command::new("sh");
    command.arg(&script).arg("--prefix").arg(&uninstall.prefix);
    command.arg("--bin-dir").arg(&uninstall.bin_dir).arg("--conf-dir").arg(&uninstall.conf_dir);
    if let Some(root) = &uninstall.root {
        command.arg("--root").arg(root);
    }
    command.args(uninstall.force.then_some("--force"));
    command.args(uninstall.purge.then_some("--purge"));
    let failed = |source| Failure::Run { program: script.clone(), source };
    let status = command.status().map_err(failed)?;
    match status.success() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(failed(io::Error::other(format!("it ended with {status}")))),
    }
}

/// Host veths, by their names, as the script counts them.
fn pods() -> Vec<String> {
    let interfaces = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let names = interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    let is_veth =
        |name: &&str| name.starts_with(naming::HOST_VETH_PREFIX) && naming::is_of_a_pod(name);
    names.filter(is_veth).map(str::to_owned).collect()
}
