//! A pod: a sandbox with its namespace, and what runs in it.

use std::net::IpAddr;
use std::path::Path;

use margay::netlink::Netlink;
use margay_datastore::Attachment;
use serde_json::Value;

use crate::cni::{CniOutput, Invocation};
use crate::namespace::NamedNetns;
use crate::node::{self, Node};

/// A sandbox on a node.
#[derive(Debug)]
pub struct Pod<'node> {
    node: &'node Node,
    container_id: String,
    netns: NamedNetns,
}

impl<'node> Pod<'node> {
    pub(crate) fn new(node: &'node Node, container_id: &str, netns: NamedNetns) -> Self {
        Self { node, container_id: container_id.to_owned(), netns }
    }

    /// The sandbox's container ID.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Path of the sandbox's namespace.
    #[must_use]
    pub fn netns_path(&self) -> &Path {
        self.netns.path()
    }

    /// The attachment of an interface of this sandbox to a network.
    #[must_use]
    pub fn attachment(&self, network: &str, ifname: &str) -> Attachment {
        Attachment::new(network, &self.container_id, ifname).expect("attachment")
    }

    /// An invocation of the network plugin for `eth0` of this sandbox, to be changed or executed.
    #[must_use]
    pub fn invocation(&self, verb: &str, config: &Value) -> Invocation {
        let plugins = node::plugin_directory();
        self.invocation_of("margay", verb, config).env("CNI_PATH", plugins.to_str().expect("path"))
    }

    /// The same of any plugin, without a `CNI_PATH`.
    #[must_use]
    pub fn invocation_of(&self, plugin: &str, verb: &str, config: &Value) -> Invocation {
        Invocation::new(plugin, verb, config)
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", self.netns.path().to_str().expect("path"))
            .env("CNI_IFNAME", "eth0")
    }

    /// Executes ADD and returns its result.
    ///
    /// # Panics
    /// When it fails.
    pub fn add(&self, config: &Value) -> Value {
        self.invocation("ADD", config).execute().success()
    }

    /// Executes DEL.
    ///
    /// # Panics
    /// When it fails.
    pub fn del(&self, config: &Value) {
        self.invocation("DEL", config).execute().success();
    }

    /// Executes CHECK with the result of the ADD.
    pub fn check(&self, config: &Value, result: &Value) -> CniOutput {
        let mut config = config.clone();
        config["prevResult"] = result.clone();
        self.invocation("CHECK", &config).execute()
    }

    /// Runs `work` inside the sandbox.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.enter(work)
    }

    /// Runs `work` with a netlink socket of the sandbox.
    pub fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Netlink) -> T + Send) -> T {
        self.enter(|| node::block_on(async { work(Netlink::open().expect("open netlink")).await }))
    }

    /// Runs a command inside the sandbox and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, command: &[&str]) -> String {
        self.enter(|| node::run(command))
    }

    /// The node that the sandbox is on.
    #[must_use]
    pub fn node(&self) -> &'node Node {
        self.node
    }

    /// Ends the sandbox: its namespace goes, and every interface in it.
    pub fn destroy(self) {
        self.netns.delete();
    }
}

/// The addresses of a result, IPv4 or IPv6.
///
/// # Panics
/// When the result holds none of the family.
#[must_use]
pub fn address(result: &Value, ipv4: bool) -> IpAddr {
    let ips = result["ips"].as_array().expect("ips").iter();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .find(|address: &IpAddr| address.is_ipv4() == ipv4)
        .expect("an address of the family")
}
