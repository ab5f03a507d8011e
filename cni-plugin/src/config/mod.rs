//! The network configuration: parsed, checked whole, and then a type whose values can be relied on.
//!
//! Invariant: a [`NetConf`] is valid. Whatever is wrong with a document is found here, before
//! anything is touched, and the error names the field by its path. Nothing here panics, whatever
//! the document, and nothing but the host name is read from the system.

mod agent;
mod bandwidth;
mod choice;
mod datastore;
#[cfg(test)]
mod documents;
mod error;
mod field;
mod keys;
mod pools;
mod requested;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use rscni_types::types::{CNIResult, Dns, GcAttachment};
use serde_json::{Map, Value};

pub use agent::AgentConf;
pub use datastore::Datastore;
pub use error::ConfigError;
pub use pools::{Pool, PoolSet};
pub use requested::{Mac, Requested};
pub(crate) use requested::{parse_ip, parse_mac};

pub(crate) use field::{Field, Object};

use crate::log::{LogConf, LogLevel};

/// Values of `ipam.type` that mean margay-ipam in this process. Calico's IPAM is nothing without
/// Calico's datastore, and the keys of its section have the same meaning here.
const BUILTIN_IPAM: [&str; 2] = ["margay-ipam", "calico-ipam"];

/// A valid network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// Network name.
    pub name: String,
    /// Name of this node in the datastore.
    pub nodename: String,
    /// MTU of the veth pair in bytes; `None` is that of the default route's interface.
    pub mtu: Option<u32>,
    /// Queues of each kind per end of the veth pair; `None` is one.
    pub num_queues: Option<u32>,
    /// Which data path pods get.
    pub dataplane: Dataplane,
    /// How the programs are attached.
    pub attach: Attach,
    /// Answer a pod's ARP requests and neighbour solicitations for any address.
    pub answer_any_arp: bool,
    /// Give the pod default routes; `None` is for its first interface only.
    pub default_route: Option<bool>,
    /// Let the pod forward packets.
    pub ip_forwarding: bool,
    /// Where state lives.
    pub paths: Paths,
    /// Where records are.
    pub datastore: Datastore,
    /// Entries of each pod map.
    pub max_pods: u32,
    /// Entries of each flow map.
    pub max_flows: u32,
    /// Where logs go.
    pub log: LogConf,
    /// Who gives out addresses.
    pub ipam: IpamConf,
    /// Name resolution, handed on in the result; `None` leaves it to the IPAM.
    pub dns: Option<Dns>,
    unused: Vec<String>,
}

/// Directories margay keeps things in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Survives reboots: the local datastore.
    pub state_dir: PathBuf,
    /// Does not: locks.
    pub run_dir: PathBuf,
    /// Root of margay's pins, in a BPF file system.
    pub bpffs_root: PathBuf,
}

impl Paths {
    /// The local datastore.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join(DATABASE)
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            bpffs_root: DEFAULT_BPFFS_ROOT.into(),
        }
    }
}

/// Which data path pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dataplane {
    /// eBPF; an ADD on a kernel that cannot do it fails.
    Ebpf,
    /// The host's IP stack alone.
    Linux,
    /// eBPF where the kernel can do it.
    Auto,
}

/// How the programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// clsact qdisc and `bpf` filter.
    Clsact,
    /// TCX link.
    Tcx,
}

impl Attach {
    /// The way that a record calls by this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Clsact, Self::Tcx].into_iter().find(|way| way.to_string() == name)
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clsact => "clsact",
            Self::Tcx => "tcx",
        })
    }
}

/// Who gives out addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpamConf {
    /// margay-ipam, in this process.
    Builtin(PoolSet),
    /// Another plugin, by its executable's name.
    Delegated(String),
}

impl IpamConf {
    /// The pools, where margay-ipam gives the addresses.
    #[must_use]
    pub fn pools(&self) -> Option<&PoolSet> {
        match self {
            Self::Builtin(pools) => Some(pools),
            Self::Delegated(_) => None,
        }
    }

    /// The same, to settle them.
    pub fn pools_mut(&mut self) -> Option<&mut PoolSet> {
        match self {
            Self::Builtin(pools) => Some(pools),
            Self::Delegated(_) => None,
        }
    }
}

impl NetConf {
    /// Validates the configuration of the network plugin.
    pub fn from_map(document: &Map<String, Value>) -> Result<Self, ConfigError> {
        let netconf = Object::root(document);
        let mut unused = keys::check(&netconf, "", keys::NETCONF_KEYS)?;
        refuse_unsupported(&netconf, &mut unused)?;
        let ipam_object = ipam_object(&netconf)?;
        let ipam = ipam_conf(&ipam_object, &mut unused)?;
        let builtin = matches!(ipam, IpamConf::Builtin(_));
        let paths = paths(&netconf, builtin.then_some(&ipam_object))?;
        let (max_pods, max_flows) = map_sizes(&netconf)?;
        Ok(Self {
            name: name(&netconf)?,
            nodename: nodename(&netconf)?,
            mtu: mtu(&netconf, &ipam)?,
            num_queues: netconf.integer("num_queues", 0..=4096)?.filter(|count| *count > 0),
            dataplane: dataplane(&netconf)?,
            attach: attach(&netconf)?,
            answer_any_arp: netconf.boolean("answer_any_arp")?.unwrap_or(false),
            default_route: netconf.boolean("default_route")?,
            ip_forwarding: ip_forwarding(&netconf)?,
            paths,
            datastore: Datastore::from_object(&netconf, &mut unused)?,
            max_pods,
            max_flows,
            log: log(&netconf)?,
            ipam,
            dns: dns(&netconf)?,
            unused,
        })
    }

    /// Keys of the configuration that have no effect, by their paths, for the log.
    #[must_use]
    pub fn unused_keys(&self) -> &[String] {
        &self.unused
    }

    /// Whether pods may be reached through VXLAN.
    #[must_use]
    pub fn uses_vxlan(&self) -> bool {
        self.ipam.pools().is_some_and(PoolSet::uses_vxlan)
    }

    /// Whether the interface gets the default routes: as configured, else only `eth0` does, the
    /// name that runtimes give a pod's first interface.
    #[must_use]
    pub fn default_route_for(&self, ifname: &str) -> bool {
        self.default_route.unwrap_or(ifname == "eth0")
    }
}

/// What margay-ipam reads of another plugin's network configuration. The keys outside `ipam`
/// belong to that plugin and are not checked, but for those of the datastore, which Calico's IPAM
/// looks for there as well.
#[derive(Debug, Clone, PartialEq)]
pub struct IpamNetConf {
    /// Network name.
    pub name: String,
    /// Name of this node in the datastore.
    pub nodename: String,
    /// Directory of the local datastore.
    pub state_dir: PathBuf,
    /// Directory of locks, those of the node's agent.
    pub run_dir: PathBuf,
    /// Where records are.
    pub datastore: Datastore,
    /// Where logs go.
    pub log: LogConf,
    /// The pools.
    pub pools: PoolSet,
    unused: Vec<String>,
}

impl IpamNetConf {
    /// Validates what margay-ipam reads.
    pub fn from_map(document: &Map<String, Value>) -> Result<Self, ConfigError> {
        let netconf = Object::root(document);
        let ipam = ipam_object(&netconf)?;
        let mut unused = keys::check(&ipam, "ipam.", keys::IPAM_KEYS)?;
        let pools = PoolSet::from_object(&ipam)?;
        if pools.all.iter().any(|pool| pool.nat_outgoing) {
            unused.push("ipam.pools[].nat_outgoing".to_owned());
        }
        Ok(Self {
            name: name(&netconf)?,
            nodename: nodename(&ipam)?,
            state_dir: directory(&ipam, "state_dir", DEFAULT_STATE_DIR)?,
            run_dir: directory(&ipam, "run_dir", DEFAULT_RUN_DIR)?,
            datastore: Datastore::from_object(&netconf, &mut unused)?,
            log: log(&ipam)?,
            pools,
            unused,
        })
    }

    /// The local datastore.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join(DATABASE)
    }

    /// Keys of `ipam` that have no effect, by their paths, for the log.
    #[must_use]
    pub fn unused_keys(&self) -> &[String] {
        &self.unused
    }
}

/// Where a GC finds what is valid.
pub(crate) const VALID_ATTACHMENTS_KEYS: [&str; 2] =
    ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The attachments that a GC must keep. libcni writes both keys, the second for plugins of a time
/// when the specification's text had it so, and `null` for an empty list. Without either, keeping
/// nothing would be a guess that costs every pod its network: an error.
pub fn valid_attachments(document: &Map<String, Value>) -> Result<Vec<GcAttachment>, ConfigError> {
    let netconf = Object::root(document);
    let Some(key) = VALID_ATTACHMENTS_KEYS.into_iter().find(|key| document.contains_key(*key))
    else {
        return Err(netconf.missing(VALID_ATTACHMENTS_KEYS[0], "GC must be told what to keep"));
    };
    netconf
        .list(key)?
        .iter()
        .map(|item| {
            let attachment = item.object()?;
            let text = |key| match attachment.string(key)? {
                Some(text) => Ok(text.to_owned()),
                None => Err(attachment.missing(key, "an attachment has one")),
            };
            Ok(GcAttachment { container_id: text("containerID")?, ifname: text("ifname")? })
        })
        .collect()
}

/// The result of the ADD that a CHECK or a chained plugin gets to see, in any version's layout.
pub fn prev_result(document: &Map<String, Value>) -> Result<Option<CNIResult>, ConfigError> {
    let Some(field) = Object::root(document).get("prevResult") else { return Ok(None) };
    let result = serde_json::from_value(field.value().clone());
    result.map(Some).map_err(|error| field.invalid(error.to_string()))
}

/// The longest host name there is (RFC 1035, section 2.3.4), and the longest name of a Kubernetes
/// node.
const LONGEST_NODENAME: usize = 253;

const DATABASE: &str = "margay.db";
const DEFAULT_STATE_DIR: &str = "/var/lib/margay";
const DEFAULT_RUN_DIR: &str = "/run/margay";
const DEFAULT_BPFFS_ROOT: &str = "/sys/fs/bpf/margay";

/// Refuses what margay cannot do and must not ignore, and reports what it may.
fn refuse_unsupported(netconf: &Object<'_>, unused: &mut Vec<String>) -> Result<(), ConfigError> {
    if let Some(field) = netconf.get("delegate") {
        let reason = "it is of flannel, which lets another plugin do the work; margay does it \
                      itself, with addresses of ipam.pools";
        return Err(field.unsupported(reason));
    }
    if let Some(policy) = netconf.object("policy")?
        && let (Some(kind), Some(field)) = (policy.string("type")?, policy.get("type"))
    {
        match kind {
            "k8s" => unused.push("policy.type".into()),
            _ => return Err(field.unsupported("margay enforces no network policy of its own")),
        }
    }
    Ok(())
}

fn ipam_object<'v>(netconf: &Object<'v>) -> Result<Object<'v>, ConfigError> {
    netconf
        .object("ipam")?
        .ok_or_else(|| netconf.missing("ipam", "somebody must give out addresses"))
}

fn ipam_conf(ipam: &Object<'_>, unused: &mut Vec<String>) -> Result<IpamConf, ConfigError> {
    let Some(kind) = ipam.string("type")? else {
        return Err(ipam.missing("type", "margay-ipam, host-local, static, …"));
    };
    if BUILTIN_IPAM.contains(&kind) {
        unused.extend(keys::check(ipam, "ipam.", keys::IPAM_KEYS)?);
        let of_the_binary = ["nodename", "log_level", "log_file_path"];
        let given = of_the_binary.into_iter().filter(|key| ipam.get(key).is_some());
        unused.extend(given.map(|key| ipam.path_of(key)));
        return Ok(IpamConf::Builtin(PoolSet::from_object(ipam)?));
    }
    let is_name = !kind.starts_with('.') && !kind.contains(|c: char| c == '/' || c.is_control());
    if let Some(field) = ipam.get("type").filter(|_| !is_name) {
        return Err(field.invalid("must be the name of a plugin, not a path"));
    }
    if let (Some("usePodCidr" | "usePodCidrIPv6"), Some(field)) =
        (ipam.get("subnet").and_then(|field| field.value().as_str()), ipam.get("subnet"))
    {
        return Err(field.unsupported(
            "it takes the Kubernetes API to know the node's pod CIDR; write the prefix itself, \
             or use margay-ipam with it as a pool",
        ));
    }
    Ok(IpamConf::Delegated(kind.to_owned()))
}

/// `ipam.state_dir` and `ipam.run_dir` serve margay-ipam under other plugins; under margay there is one of
/// each.
fn paths(netconf: &Object<'_>, builtin_ipam: Option<&Object<'_>>) -> Result<Paths, ConfigError> {
    let one_of = |key, default, defect| {
        let outside = directory(netconf, key, default)?;
        let Some(field) = builtin_ipam.and_then(|ipam| ipam.get(key)) else { return Ok(outside) };
        let inside = path_of(&field)?;
        match netconf.get(key).is_some() && inside != outside {
            true => Err(field.invalid(defect)),
            false => Ok(inside),
        }
    };
    let one_datastore = "differs from state_dir, and there is one datastore";
    Ok(Paths {
        state_dir: one_of("state_dir", DEFAULT_STATE_DIR, one_datastore)?,
        run_dir: one_of("run_dir", DEFAULT_RUN_DIR, "differs from run_dir, and locks are in one")?,
        bpffs_root: directory(netconf, "bpffs_root", DEFAULT_BPFFS_ROOT)?,
    })
}

fn directory(object: &Object<'_>, key: &str, default: &str) -> Result<PathBuf, ConfigError> {
    match (object.string(key)?, object.get(key)) {
        (Some(_), Some(field)) => path_of(&field),
        _ => Ok(PathBuf::from(default)),
    }
}

fn path_of(field: &Field<'_>) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(field.string()?);
    let clean = path.is_absolute() && !field.string()?.contains(char::is_control);
    clean
        .then_some(path)
        .ok_or_else(|| field.invalid("must be an absolute path without control characters"))
}

/// The specification's rule for network names and container IDs.
fn name(netconf: &Object<'_>) -> Result<String, ConfigError> {
    let Some(field) = netconf.get("name") else {
        return Err(netconf.missing("name", "a network has one"));
    };
    let name = field.string()?;
    if margay_datastore::is_cni_name(name) {
        Ok(name.to_owned())
    } else {
        Err(field.invalid(
            "must start with a letter or digit, then letters, digits, underscores, dots, hyphens",
        ))
    }
}

/// `nodename`, Calico's old name for it, or the host's own name in lower case, as with Calico.
fn nodename(object: &Object<'_>) -> Result<String, ConfigError> {
    for key in ["nodename", "hostname"] {
        if let (Some(name), Some(field)) = (object.string(key)?, object.get(key)) {
            return match margay_datastore::is_cni_name(name) && name.len() <= LONGEST_NODENAME {
                true => Ok(name.to_owned()),
                false => Err(field.invalid("must be a host name of 253 bytes at most")),
            };
        }
    }
    let host = rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase();
    if margay_datastore::is_cni_name(&host) {
        Ok(host)
    } else {
        Err(object.missing("nodename", "the host has no name that could stand in for it"))
    }
}

/// The kernel's limits for a veth, where it does IPv6 only from 1280 on; 0 is the same as absent.
fn mtu(netconf: &Object<'_>, ipam: &IpamConf) -> Result<Option<u32>, ConfigError> {
    let least = match ipam {
        IpamConf::Builtin(PoolSet { assign_ipv6: true, .. }) => 1280,
        _ => 68,
    };
    match netconf.integer("mtu", 0..=65_535)? {
        None | Some(0) => Ok(None),
        Some(_) => netconf.integer("mtu", least..=65_535),
    }
}

fn ip_forwarding(netconf: &Object<'_>) -> Result<bool, ConfigError> {
    let Some(settings) = netconf.object("container_settings")? else { return Ok(false) };
    Ok(settings.boolean("allow_ip_forwarding")?.unwrap_or(false))
}

fn dataplane(netconf: &Object<'_>) -> Result<Dataplane, ConfigError> {
    match (netconf.string("dataplane")?, netconf.get("dataplane")) {
        (None | Some("ebpf"), _) | (_, None) => Ok(Dataplane::Ebpf),
        (Some("linux"), _) => Ok(Dataplane::Linux),
        (Some("auto"), _) => Ok(Dataplane::Auto),
        (_, Some(field)) => Err(field.invalid("must be ebpf, linux or auto")),
    }
}

fn attach(netconf: &Object<'_>) -> Result<Attach, ConfigError> {
    match (netconf.string("attach")?.map(Attach::named), netconf.get("attach")) {
        (None, _) | (_, None) => Ok(Attach::Clsact),
        (Some(Some(attach)), _) => Ok(attach),
        (Some(None), Some(field)) => Err(field.invalid("must be clsact or tcx")),
    }
}

/// Entries of each pod map, and of each flow map.
fn map_sizes(object: &Object<'_>) -> Result<(u32, u32), ConfigError> {
    let size = |key, default| -> Result<u32, ConfigError> {
        Ok(object.integer(key, 1..=16_777_216)?.unwrap_or(default))
    };
    let max_pods = size("max_pods", margay_abi::DEFAULT_MAX_PODS)?;
    Ok((max_pods, size("max_flows", margay_abi::DEFAULT_MAX_FLOWS)?))
}

fn log(object: &Object<'_>) -> Result<LogConf, ConfigError> {
    let level = match (object.string("log_level")?, object.get("log_level")) {
        (Some(text), Some(field)) => LogLevel::parse(text)
            .ok_or_else(|| field.invalid("must be trace, debug, info, warning, error or fatal"))?,
        _ => LogLevel::default(),
    };
    let file = match (object.string("log_file_path")?, object.get("log_file_path")) {
        (Some(_), Some(field)) => Some(path_of(&field)?),
        _ => None,
    };
    Ok(LogConf { level, file })
}

/// Name resolution, if anything is said about it.
pub(crate) fn dns(netconf: &Object<'_>) -> Result<Option<Dns>, ConfigError> {
    let Some(dns) = netconf.object("dns")? else { return Ok(None) };
    let texts = |key| -> Result<Vec<String>, ConfigError> {
        dns.list(key)?.iter().map(|item| item.string().map(str::to_owned)).collect()
    };
    let some = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    let dns = Dns {
        nameservers: texts("nameservers")?,
        domain: dns.string("domain")?.map(str::to_owned),
        search: some(texts("search")?),
        options: some(texts("options")?),
    };
    Ok(Some(dns).filter(|dns| *dns != Dns::default()))
}
