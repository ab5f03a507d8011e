//! What margay is measured against, each with the configuration that a user would write for it.

use std::fmt::{self, Debug, Display};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use margay_tests::node::{plugin_directory, reference_plugin_directory};
use margay_tests::{Invocation, Node, Pod};
use serde_json::{Value, json};

use crate::execution::Execution;
use crate::redirect;

/// One of the columns of every comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// margay with its TC programs.
    Margay,
    /// margay with `"dataplane": "linux"`: what the standard plugin does.
    Linux,
    /// `ptp` with `host-local`.
    Ptp,
    /// `bridge` with `host-local`.
    Bridge,
    /// No plugin: two namespaces with one veth pair between them, the physical limit.
    Veth,
    /// No plugin: two namespaces, each with a veth pair to the host, and a program of four instructions
    /// there that redirects everything to the other one. The kernel's share of what margay does.
    Redirect,
}

/// The peers that are plugins.
pub(crate) const PLUGINS: &[Peer] = &[Peer::Margay, Peer::Linux, Peer::Ptp, Peer::Bridge];

/// The peers with two pods that can talk to each other as soon as they are there.
pub(crate) const PEERS: &[Peer] = &[Peer::Margay, Peer::Linux, Peer::Ptp, Peer::Bridge, Peer::Veth];

/// Which addresses pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    Both,
}

/// Address of the server at the end of a bare veth pair.
pub(crate) const WIRED_V4: [u8; 4] = [10, 244, 0, 2];
/// The same of IPv6.
pub(crate) const WIRED_V6: [u16; 8] = [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 2];

/// Two pods that can talk to each other, and the addresses of one.
#[derive(Debug)]
pub(crate) struct Pair<'node> {
    pub(crate) client: Pod<'node>,
    pub(crate) server: Pod<'node>,
    pub(crate) server_v4: IpAddr,
    pub(crate) server_v6: IpAddr,
}

impl Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Margay => "margay",
            Self::Linux => "margay linux",
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
            Self::Veth => "bare veth",
            Self::Redirect => "bare redirect",
        })
    }
}

impl Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Peer {
    /// Its network configuration, with everything that it writes in the node's directory.
    pub(crate) fn network(self, node: &Node, families: Families) -> Value {
        match self {
            Self::Margay => margay(node, families, "ebpf"),
            Self::Linux => margay(node, families, "linux"),
            Self::Ptp => {
                let ipam = host_local(node, families);
                json!({"cniVersion": "1.0.0", "name": "podnet", "type": "ptp", "ipam": ipam})
            }
            Self::Bridge => json!({
                "cniVersion": "1.0.0",
                "name": "podnet",
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipam": host_local(node, families),
            }),
            Self::Veth | Self::Redirect => Value::Null,
        }
    }

    /// An execution of its plugin for `eth0` of a sandbox.
    pub(crate) fn invocation(self, pod: &Pod<'_>, verb: &str, network: &Value) -> Invocation {
        let directory = self.directory();
        let plugin = directory.join(self.plugin()).display().to_string();
        pod.invocation_of(&plugin, verb, network).env("CNI_PATH", &directory.display().to_string())
    }

    /// Executes a verb.
    pub(crate) fn execute(self, pod: &Pod<'_>, verb: &str, network: &Value) -> Result<Execution> {
        let execution = Execution::of(&self.invocation(pod, verb, network));
        execution.with_context(|| format!("{verb} of {}", pod.container_id()))
    }

    /// Executes ADD.
    pub(crate) fn add(self, pod: &Pod<'_>, network: &Value) -> Result<Execution> {
        self.execute(pod, "ADD", network)
    }

    /// Executes DEL.
    pub(crate) fn del(self, pod: &Pod<'_>, network: &Value) -> Result<Execution> {
        self.execute(pod, "DEL", network)
    }

    /// Two pods on the peer's network, with addresses of both families.
    pub(crate) fn pair(self, node: &Node) -> Result<Pair<'_>> {
        let (client, server) = (node.sandbox("client"), node.sandbox("server"));
        match self {
            Self::Veth => return Ok(wire(client, server)),
            Self::Redirect => return redirect::connect(node, client, server),
            _ => {}
        }
        let network = self.network(node, Families::Both);
        let addresses = |pod: &Pod<'_>| -> Result<[IpAddr; 2]> {
            let answer = self.add(pod, &network)?.answer()?;
            Ok([true, false].map(|ipv4| margay_tests::pod::address(&answer, ipv4)))
        };
        addresses(&client)?;
        let [server_v4, server_v6] = addresses(&server)?;
        Ok(Pair { client, server, server_v4, server_v6 })
    }

    fn plugin(self) -> &'static str {
        match self {
            Self::Margay | Self::Linux => "margay",
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
            Self::Veth | Self::Redirect => unreachable!("{self} has no plugin"),
        }
    }

    fn directory(self) -> PathBuf {
        match self {
            Self::Margay | Self::Linux => plugin_directory(),
            _ => reference_plugin_directory(),
        }
    }
}

/// A configuration as in the README: nothing but what the node needs to itself.
fn margay(node: &Node, families: Families, dataplane: &str) -> Value {
    let mut pools = vec![json!({"cidr": "10.244.0.0/16"})];
    if families == Families::Both {
        pools.push(json!({"cidr": "fd00:10:244::/112"}));
    }
    json!({
        "cniVersion": "1.0.0",
        "name": "podnet",
        "type": "margay",
        "dataplane": dataplane,
        "nodename": "node",
        "state_dir": node.path("state"),
        "run_dir": node.path("run"),
        "bpffs_root": node.bpffs_root(),
        "ipam": {"type": "margay-ipam", "pools": pools},
    })
}

fn host_local(node: &Node, families: Families) -> Value {
    let mut ranges = vec![json!([{"subnet": "10.244.0.0/16"}])];
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if families == Families::Both {
        ranges.push(json!([{"subnet": "fd00:10:244::/112"}]));
        routes.push(json!({"dst": "::/0"}));
    }
    json!({
        "type": "host-local",
        "dataDir": node.path("state/host-local"),
        "ranges": ranges,
        "routes": routes,
    })
}

/// One veth pair from sandbox to sandbox.
fn wire<'node>(client: Pod<'node>, server: Pod<'node>) -> Pair<'node> {
    let server_netns = server.netns_path().display().to_string();
    client
        .run(&["ip", "link", "add", "eth0", "mtu", "1500", "type", "veth", "peer", "name", "wire"]);
    client.run(&["ip", "link", "set", "wire", "netns", &server_netns, "name", "eth0"]);
    Pair::addressed(client, server)
}

impl<'node> Pair<'node> {
    /// Two sandboxes whose `eth0` get addresses of one subnet.
    pub(crate) fn addressed(client: Pod<'node>, server: Pod<'node>) -> Self {
        for (pod, host) in [(&client, 1), (&server, 2)] {
            let (v4, v6) = (format!("10.244.0.{host}/24"), format!("fd00:10:244::{host}/112"));
            pod.run(&["ip", "addr", "add", &v4, "dev", "eth0"]);
            pod.run(&["ip", "addr", "add", &v6, "dev", "eth0", "nodad"]);
            pod.run(&["ip", "link", "set", "eth0", "up"]);
        }
        Self { client, server, server_v4: WIRED_V4.into(), server_v6: WIRED_V6.into() }
    }
}
