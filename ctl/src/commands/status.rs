//! `margayctl status`: the node on one screen, and below what is wrong with it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Args;
use margay::config::{self, Datastore, IpamConf};
use margay::error::chain;
use margay_datapath::{Datapath, PinnedBuild, Pods, probe};
use margay_datastore::{EndpointState, PoolUsage};
use serde::Serialize;

use super::doctor::BIN_DIR;
use crate::arguments::{Shared, Watched};
use crate::doctor::{self, Depth, Diagnosis, Picture};
use crate::failure::Failure;
use crate::node::{Node, Part};
use crate::output::{self, BAD, BOLD, DIM, Format, GOOD, Report, WARNING, printable};

/// How much of the log's end is looked through for errors.
const LOG_END_BYTES: u64 = 256 << 10;
/// How many of them are shown.
const LAST_ERRORS: usize = 5;

/// The node on one screen: programs, maps, pools, pods, and what is wrong
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
    #[command(flatten)]
    watched: Watched,
}

pub(crate) async fn run(status: &Status, shared: &Shared, format: Format) -> Result<(), Failure> {
    let look = async || Ok(overview(shared, &status.bin_dir).await);
    output::show_or_watch(&status.watched, format, look).await
}

/// Whatever cannot be had is missing, and among the findings.
pub(crate) async fn overview(shared: &Shared, bin_dir: &Path) -> Overview {
    let node = Node::find_with_pools(shared);
    let (picture, diagnosis) =
        doctor::examine(&node, &shared.agent_config, bin_dir, Depth::Quick).await;
    Overview::of(&node, picture.as_ref(), diagnosis)
}

/// What `status` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    version: &'static str,
    node: Option<String>,
    kernel: Kernel,
    networks: Vec<Network>,
    datastore: Option<String>,
    programs: Vec<Build>,
    maps: Vec<Fill>,
    pools: Vec<Fill>,
    endpoints: Endpoints,
    agent: Option<String>,
    recent_errors: Vec<String>,
    #[serde(flatten)]
    diagnosis: Diagnosis,
}

#[derive(Debug, Serialize)]
struct Kernel {
    release: String,
    /// Why it does not run margay's programs.
    lacks: Option<String>,
}

#[derive(Debug, Serialize)]
struct Network {
    name: String,
    file: PathBuf,
    dataplane: &'static str,
    attach: Option<String>,
    ipam: String,
}

#[derive(Debug, Serialize)]
struct Build {
    build: String,
    abi_version: u32,
    is_current: bool,
    is_of_this_release: bool,
}

#[derive(Debug, Serialize)]
struct Fill {
    name: String,
    used: String,
    capacity: String,
    tenths: u8,
}

#[derive(Debug, Default, Serialize)]
struct Endpoints {
    ready: usize,
    pending: usize,
    /// Of another boot of the machine, which the next verb takes back.
    of_earlier_boots: usize,
}

impl Overview {
    fn of(node: &Node, picture: Option<&Picture<'_>>, diagnosis: Diagnosis) -> Self {
        let settings = node.settings().ok();
        let root = settings.as_ref().map(|settings| settings.paths.bpffs_root.as_path());
        let log = settings.as_ref().and_then(|settings| settings.log.file.as_deref());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            node: settings.as_ref().map(|settings| settings.nodename.clone()),
            kernel: Kernel::of(root),
            networks: node.networks.iter().map(Network::of).collect(),
            datastore: settings.as_ref().map(|settings| match &settings.datastore {
                Datastore::Local => settings.paths.database().display().to_string(),
                Datastore::Etcd(conf) => format!("etcd at {}", without_users(&conf.endpoints)),
            }),
            programs: picture.map(builds).unwrap_or_default(),
            maps: picture.map(maps).unwrap_or_default(),
            pools: picture.map(pools).unwrap_or_default(),
            endpoints: picture.map(Endpoints::of).unwrap_or_default(),
            agent: picture.filter(|picture| picture.has_others()).map(agent),
            recent_errors: log.and_then(|log| errors_in(log).ok()).unwrap_or_default(),
            diagnosis,
        }
    }
}

impl Kernel {
    fn of(root: Option<&Path>) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let is_root = rustix::process::geteuid().is_root();
        let root = root.filter(|_| is_root);
        Self { release, lacks: root.and_then(|root| probe(root).err()).map(|error| chain(&error)) }
    }
}

impl Network {
    fn of(network: &crate::node::Network) -> Self {
        let (dataplane, attach, ipam) = match &network.part {
            Part::Whole(conf) => (
                match conf.dataplane {
                    config::Dataplane::Ebpf => "ebpf",
                    config::Dataplane::Linux => "linux",
                    config::Dataplane::Auto => "auto",
                },
                Some(conf.attach.to_string()),
                match &conf.ipam {
                    IpamConf::Builtin(_) => "margay-ipam".to_owned(),
                    IpamConf::Delegated(plugin) => plugin.clone(),
                },
            ),
            Part::Addresses(_) => ("of another plugin", None, "margay-ipam".to_owned()),
        };
        let (name, file) = (network.name.clone(), network.file.clone());
        Self { name, file, dataplane, attach, ipam }
    }
}

/// Where somebody has written a password into it.
fn without_users(endpoints: &[String]) -> String {
    let bare = endpoints.iter().map(|endpoint| match endpoint.rsplit_once('@') {
        Some((_, host)) => host,
        None => endpoint,
    });
    bare.collect::<Vec<_>>().join(", ")
}

fn builds(picture: &Picture<'_>) -> Vec<Build> {
    let ours = Datapath::embedded_build().ok();
    let current = doctor::current(&picture.builds);
    let build = |pinned: &PinnedBuild| {
        let PinnedBuild { build, abi_version, .. } = pinned;
        Build {
            build: build.clone(),
            abi_version: *abi_version,
            is_current: Some(pinned) == current,
            is_of_this_release: ours == Some(build.as_str()),
        }
    };
    picture.builds.iter().map(build).collect()
}

fn maps(picture: &Picture<'_>) -> Vec<Fill> {
    let root = &picture.paths().bpffs_root;
    let (Some(entries), Ok(Some(pods))) = (&picture.entries, Pods::open(root)) else {
        return Vec::new();
    };
    let mut fills = Vec::new();
    for (ipv4, name) in [(true, "pods_v4"), (false, "pods_v6")] {
        let used = entries.keys().filter(|address| address.is_ipv4() == ipv4).count();
        fills.push(Fill::of(name, used as u128, pods.capacity(ipv4).into()));
    }
    fills
}

fn pools(picture: &Picture<'_>) -> Vec<Fill> {
    if picture.site.is_none() {
        return Vec::new();
    }
    let fill = |PoolUsage { pool, capacity, used }| Fill::of(&pool.to_string(), used, capacity);
    picture.pools.iter().map(|pool| fill(picture.usage(pool))).collect()
}

fn agent(picture: &Picture<'_>) -> String {
    let Some(conf) = &picture.node.agent else { return "not configured".to_owned() };
    let Some(address) = conf.metrics_address else { return "does not say".to_owned() };
    match doctor::ask(address, "/readyz") {
        Ok((200, _)) => "ready".to_owned(),
        Ok((_, body)) => format!("not ready: {}", body.trim()),
        Err(_) => "silent".to_owned(),
    }
}

impl Endpoints {
    fn of(picture: &Picture<'_>) -> Self {
        let boot_id = picture.site.as_ref().map(|site| site.boot_id.as_str());
        let mut counts = Self::default();
        for endpoint in &picture.endpoints {
            let count = match endpoint.state {
                _ if Some(endpoint.boot_id.as_str()) != boot_id => &mut counts.of_earlier_boots,
                EndpointState::Ready => &mut counts.ready,
                EndpointState::Pending => &mut counts.pending,
            };
            *count += 1;
        }
        counts
    }
}

impl Fill {
    fn of(name: &str, used: u128, capacity: u128) -> Self {
        let tenths = used.saturating_mul(10).div_ceil(capacity.max(1)).min(10);
        let tenths = u8::try_from(tenths).unwrap_or(10);
        let (used, capacity) = (used.to_string(), capacity.to_string());
        Self { name: name.to_owned(), used, capacity, tenths }
    }

    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let full = usize::from(self.tenths);
        let style = if full >= 10 {
            BAD
        } else if full == 9 {
            WARNING
        } else {
            GOOD
        };
        let (bar, rest) = ("#".repeat(full), ".".repeat(10 - full));
        let Self { name, used, capacity, .. } = self;
        writeln!(out, "  {name:<24} {style}{bar}{style:#}{DIM}{rest}{DIM:#} {used} of {capacity}")
    }
}

/// The last lines of the log that say that something failed.
fn errors_in(log: &Path) -> io::Result<Vec<String>> {
    let errors = end_of(log, LOG_END_BYTES)?;
    let errors: Vec<&str> = errors.lines().filter(|line| line.contains(" ERROR ")).collect();
    let first = errors.len().saturating_sub(LAST_ERRORS);
    Ok(errors[first..].iter().map(|line| (*line).to_owned()).collect())
}

/// The last so many bytes of a file, from the beginning of a line.
pub(crate) fn end_of(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let begin = file.metadata()?.len().saturating_sub(bytes);
    file.seek(SeekFrom::Start(begin))?;
    let mut end = Vec::new();
    file.take(bytes).read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end).into_owned();
    Ok(match text.split_once('\n') {
        Some((_, rest)) if begin > 0 => rest.to_owned(),
        _ => text,
    })
}

impl Report for Overview {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let unknown = "unknown".to_owned();
        let node = self.node.as_ref().unwrap_or(&unknown);
        let Kernel { release, lacks } = &self.kernel;
        writeln!(out, "{BOLD}node{BOLD:#}       {node}, margayctl {}", self.version)?;
        match lacks {
            None => writeln!(out, "{BOLD}kernel{BOLD:#}     {release}, runs margay's programs")?,
            Some(lacks) => writeln!(out, "{BOLD}kernel{BOLD:#}     {release}: {lacks}")?,
        }
        for Network { name, dataplane, attach, ipam, .. } in &self.networks {
            let attach = attach.as_ref().map(|way| format!(" by {way}")).unwrap_or_default();
            writeln!(
                out,
                "{BOLD}network{BOLD:#}    {name}: dataplane {dataplane}{attach}, addresses of {ipam}"
            )?;
        }
        let datastore = self.datastore.as_ref().unwrap_or(&unknown);
        writeln!(out, "{BOLD}datastore{BOLD:#}  {datastore}")?;
        for Build { build, abi_version, is_current, is_of_this_release } in &self.programs {
            let current = if *is_current { ", which new pods get" } else { "" };
            let ours = if *is_of_this_release { ", of this release" } else { "" };
            writeln!(
                out,
                "{BOLD}programs{BOLD:#}   build {build} (ABI {abi_version}){current}{ours}"
            )?;
        }
        let Endpoints { ready, pending, of_earlier_boots } = &self.endpoints;
        write!(out, "{BOLD}endpoints{BOLD:#}  {ready} ready, {pending} in the making")?;
        match of_earlier_boots {
            0 => writeln!(out)?,
            _ => writeln!(out, ", {of_earlier_boots} of earlier boots")?,
        }
        if let Some(agent) = &self.agent {
            writeln!(out, "{BOLD}agent{BOLD:#}      {}", printable(agent))?;
        }
        for (heading, fills) in [("maps", &self.maps), ("pools", &self.pools)] {
            if !fills.is_empty() {
                writeln!(out, "{BOLD}{heading}{BOLD:#}")?;
            }
            fills.iter().try_for_each(|fill| fill.write(out))?;
        }
        if !self.recent_errors.is_empty() {
            writeln!(out, "{BOLD}recent errors{BOLD:#}")?;
        }
        for error in &self.recent_errors {
            writeln!(out, "  {}", printable(error))?;
        }
        writeln!(out)?;
        self.diagnosis.write(out)
    }
}
