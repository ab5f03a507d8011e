//! The dataplane that carries a pod's packets: margay's programs, or the host's stack alone as the
//! standard plugin has it.
//!
//! Invariant: with either one the host's routes to the pod exist, so that whatever a program leaves
//! to the stack still arrives.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use margay_abi::{HOST_VETH_MAC, PodInfo, pod_flags};
use margay_datapath::{
    AttachError, AttachMode, Datapath, DatapathError, LoadOptions, MapError, Pods, ProbeError,
};
use margay_datastore::Endpoint;

use crate::config::{self, NetConf};
use crate::host::HostSide;
use crate::netlink::{Netlink, NetlinkError};

/// Why the dataplane could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The programs cannot be loaded or opened.
    #[error("the eBPF dataplane is not to be had (\"dataplane\": \"linux\" does without)")]
    Unavailable(#[source] DatapathError),
    /// The node cannot run the programs.
    #[error("the eBPF dataplane is not to be had (\"dataplane\": \"linux\" does without)")]
    NotReady(#[source] ProbeError),
    /// The programs cannot be attached, or what is attached cannot be looked at.
    #[error("the eBPF dataplane on {interface}")]
    Attach {
        /// The host veth.
        interface: String,
        /// The cause.
        #[source]
        source: AttachError,
    },
    /// A map refused a pod's entry.
    #[error("the map entry of pod address {address}")]
    Map {
        /// The pod's address.
        address: IpAddr,
        /// The cause.
        #[source]
        source: MapError,
    },
    /// The pinned maps cannot be opened.
    #[error("the pinned maps")]
    Maps(#[source] MapError),
    /// A look at the owner of an entry failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What carries a pod's packets.
#[derive(Debug)]
pub enum Dataplane {
    /// margay's programs, pinned.
    Ebpf(Box<Datapath>),
    /// The host's stack.
    Linux,
}

impl fmt::Display for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf(_) => EBPF,
            Self::Linux => LINUX,
        })
    }
}

/// What an endpoint record calls [`Dataplane::Ebpf`].
pub const EBPF: &str = "ebpf";
/// What an endpoint record calls [`Dataplane::Linux`].
pub const LINUX: &str = "linux";

impl Dataplane {
    /// The dataplane that the configuration asks for. The programs are loaded by the first ADD on a
    /// node and opened by every later one.
    ///
    /// # Errors
    /// When the configuration insists on eBPF and the node cannot do it.
    pub fn prepare(conf: &NetConf) -> Result<Self, DataplaneError> {
        if conf.dataplane == config::Dataplane::Linux {
            return Ok(Self::Linux);
        }
        let options = LoadOptions {
            max_pods: conf.max_pods,
            max_flows: conf.max_flows,
            ..LoadOptions::new(conf.paths.run_dir.join("load"))
        };
        match Datapath::open_or_load(&conf.paths.bpffs_root, &options) {
            Ok(datapath) => Ok(Self::Ebpf(Box::new(datapath))),
            Err(error) if conf.dataplane == config::Dataplane::Auto => {
                let error = crate::error::chain(&error);
                tracing::warn!(error, "no eBPF dataplane on this node: the host's stack it is");
                Ok(Self::Linux)
            }
            Err(error) => Err(DataplaneError::Unavailable(error)),
        }
    }

    /// Whether the host's stack answers ARP and NDP for the gateway.
    #[must_use]
    pub fn uses_proxy(&self) -> bool {
        matches!(self, Self::Linux)
    }

    /// Attaches the programs to the host veth, which is still down.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub async fn attach(
        &self,
        conf: &NetConf,
        netlink: &Netlink,
        host: &HostSide,
    ) -> Result<(), DataplaneError> {
        let Self::Ebpf(datapath) = self else { return Ok(()) };
        let attached =
            datapath.attach(netlink.handle(), host.ifindex, attach_mode(conf.attach)).await;
        attached.map_err(|source| DataplaneError::Attach { interface: host.name.clone(), source })
    }

    /// Lets the programs know the pod: the last step, after which its packets are forwarded.
    ///
    /// # Errors
    /// When a map is full.
    pub fn publish(
        &self,
        conf: &NetConf,
        host: &HostSide,
        endpoint: &Endpoint,
    ) -> Result<(), DataplaneError> {
        let Self::Ebpf(datapath) = self else { return Ok(()) };
        for &address in &host.addresses {
            let inserted =
                datapath.pods().insert(address, &map_entry(conf.answer_any_arp, host, endpoint));
            inserted.map_err(|source| DataplaneError::Map { address, source })?;
        }
        Ok(())
    }
}

/// How the programs are attached.
#[must_use]
pub fn attach_mode(attach: config::Attach) -> AttachMode {
    match attach {
        config::Attach::Clsact => AttachMode::Clsact,
        config::Attach::Tcx => AttachMode::Tcx,
    }
}

/// What the map says of each of a pod's addresses.
#[must_use]
pub fn map_entry(answer_any_arp: bool, host: &HostSide, endpoint: &Endpoint) -> PodInfo {
    let is_shaped = !endpoint.bandwidth.is_unlimited();
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    PodInfo {
        ifindex: host.ifindex,
        mtu: if is_shaped { 0 } else { endpoint.mtu },
        flags: flag(answer_any_arp, pod_flags::ANSWER_ANY) | flag(is_shaped, pod_flags::SHAPED),
        pod_mac: host.pod_mac,
        host_mac: HOST_VETH_MAC,
    }
}

/// What the flags of a map entry say, in words.
#[must_use]
pub fn flag_names(flags: u32) -> Vec<&'static str> {
    let names = [(pod_flags::ANSWER_ANY, "answer_any_arp"), (pod_flags::SHAPED, "shaped")];
    names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect()
}

/// The node's map of pods, whichever build made it; none where no program was ever loaded.
///
/// # Errors
/// When there is one and it cannot be opened.
pub fn pods(bpffs_root: &Path) -> Result<Option<Pods>, DataplaneError> {
    Pods::open(bpffs_root).map_err(DataplaneError::Maps)
}

/// The addresses whose map entries lead to an interface. Walks the whole map.
///
/// # Errors
/// When the map cannot be read.
pub fn addresses_of(bpffs_root: &Path, ifindex: u32) -> Result<BTreeSet<IpAddr>, DataplaneError> {
    let Some(pods) = pods(bpffs_root)? else { return Ok(BTreeSet::new()) };
    let entries = pods.entries().map_err(DataplaneError::Maps)?.into_iter();
    Ok(entries.filter(|(_, entry)| entry.ifindex == ifindex).map(|(address, _)| address).collect())
}

/// Removes a map entry, unless another pod got the address meanwhile.
///
/// # Errors
/// When the map cannot be read or written.
pub fn remove_entry(pods: &Pods, address: IpAddr, entry: &PodInfo) -> Result<(), DataplaneError> {
    let failed = |source| DataplaneError::Map { address, source };
    if pods.get(address).map_err(failed)? == Some(*entry) {
        pods.remove(address).map_err(failed)?;
    }
    Ok(())
}
