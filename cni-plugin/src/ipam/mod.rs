//! Address management: margay-ipam in this process, or another plugin by the CNI rules.
//!
//! Invariant: addresses are durable before [`Ipam::add`] returns, and [`Ipam::del`] needs nothing
//! but the attachment and the configuration to give them back. Nothing here touches the pod.

mod builtin;
mod delegated;
mod plugin;
mod result;

use std::path::PathBuf;

use margay_datastore::{Attachment, Store};

pub(crate) use builtin::pod_ref;
pub use builtin::{
    Builtin, boot_id, is_netns_alive, netns_inode, open_store, open_store_anyway,
    reclaim_earlier_boots, upkeep,
};
pub use delegated::Delegated;
pub use plugin::MargayIpam;
pub use result::{AssignedIp, IpamResult, Route};

use crate::config::{IpamConf, NetConf};
use crate::protocol::{Call, Target};

/// Who gives out the addresses of a network.
pub enum Ipam<'a> {
    /// margay-ipam, in this process.
    Builtin(Builtin<'a>),
    /// Another plugin, as a process of its own.
    Delegated(Delegated<'a>),
}

impl<'a> Ipam<'a> {
    /// The IPAM that `netconf` names. `boot_id` is [`boot_id`]'s.
    #[must_use]
    pub fn new(netconf: &'a NetConf, call: &'a Call, store: &'a Store, boot_id: &'a str) -> Self {
        match &netconf.ipam {
            IpamConf::Builtin(pools) => {
                Self::Builtin(Builtin { store, node: &netconf.nodename, boot_id, pools })
            }
            IpamConf::Delegated(plugin) => Self::Delegated(Delegated { plugin, call }),
        }
    }

    /// Reserves addresses for the attachment.
    pub fn add(
        &self,
        attachment: &Attachment,
        target: &Target,
        requested: &[std::net::IpAddr],
    ) -> Result<IpamResult, IpamError> {
        match self {
            Self::Builtin(builtin) => Ok(builtin.add(attachment, target, requested)?.for_pods()),
            Self::Delegated(delegated) => delegated.add(attachment),
        }
    }

    /// Gives the attachment's addresses back; content if it has none.
    pub fn del(&self, attachment: &Attachment) -> Result<(), IpamError> {
        match self {
            Self::Builtin(builtin) => builtin.del(attachment),
            Self::Delegated(delegated) => delegated.del(attachment),
        }
    }

    /// Verifies that the attachment still has its addresses: `expected` where the IPAM can tell.
    pub fn check(
        &self,
        attachment: &Attachment,
        expected: &[std::net::IpAddr],
    ) -> Result<(), IpamError> {
        match self {
            Self::Builtin(builtin) => builtin.check(attachment, expected),
            Self::Delegated(delegated) => delegated.check(attachment),
        }
    }

    /// Gives back what belongs to none of the `valid` attachments of `network`. Errors are
    /// collected: the first one is returned after everything was tried.
    pub fn gc(&self, network: &str, valid: &[Attachment]) -> Result<(), IpamError> {
        match self {
            Self::Builtin(builtin) => builtin.gc(network, valid).map(drop),
            Self::Delegated(delegated) => delegated.gc(valid),
        }
    }

    /// Whether an ADD could get addresses.
    pub fn status(&self) -> Result<(), IpamError> {
        match self {
            Self::Builtin(builtin) => builtin.status(),
            Self::Delegated(delegated) => delegated.status(),
        }
    }
}

/// Why addresses could not be had, given back or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// The datastore failed.
    #[error("datastore")]
    Store(#[from] margay_datastore::StoreError),
    /// What is configured for etcd cannot be used.
    #[error("datastore")]
    Etcd(#[source] margay_datastore::EtcdConfError),
    /// margay-ipam's allocator failed or refused.
    #[error("margay-ipam")]
    Allocator(#[from] margay_datastore::IpamError),
    /// The attachment does not hold what it should.
    #[error("{attachment} holds {held:?} in margay-ipam, expected {expected:?}")]
    Mismatch {
        /// Which attachment.
        attachment: Attachment,
        /// What the datastore says.
        held: Vec<std::net::IpAddr>,
        /// What ADD gave.
        expected: Vec<std::net::IpAddr>,
    },
    /// No pool of a family has an address left.
    #[error("no free {family} address in {pools}")]
    NoneLeft {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The pools, separated by commas.
        pools: String,
    },
    /// A pool without a gateway cannot serve the plugin that asks.
    #[error("pool {pool} is too small to have a gateway, which other plugins than margay need")]
    NoGateway {
        /// The pool.
        pool: ipnetwork::IpNetwork,
    },
    /// The kernel's boot ID cannot be read.
    #[error("cannot read {}", .path.display())]
    BootId {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No such plugin.
    #[error("IPAM plugin {plugin:?} is not in CNI_PATH={path:?}")]
    NotFound {
        /// `ipam.type`.
        plugin: String,
        /// `CNI_PATH`.
        path: String,
    },
    /// The plugin cannot be started or talked to.
    #[error("cannot run IPAM plugin {}", .path.display())]
    Run {
        /// Its executable.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The plugin reported an error, which keeps its code.
    #[error("IPAM plugin {plugin}: {msg}{}{details}", if .details.is_empty() { "" } else { "; " })]
    Reported {
        /// `ipam.type`.
        plugin: String,
        /// The plugin's code.
        code: u32,
        /// The plugin's message.
        msg: String,
        /// The plugin's details.
        details: String,
    },
    /// The plugin failed without saying why in the form that CNI wants.
    #[error("IPAM plugin {plugin} failed ({status}): {output}")]
    Failed {
        /// `ipam.type`.
        plugin: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The beginning of what it wrote.
        output: String,
    },
    /// The plugin's result cannot be read.
    #[error("IPAM plugin {plugin}: result: {reason}")]
    Result {
        /// `ipam.type`.
        plugin: String,
        /// Field, value and what is wrong with it.
        reason: String,
    },
}
