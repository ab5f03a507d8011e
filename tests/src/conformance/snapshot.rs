//! All that a plugin can leave on a node, so that before and after can be compared.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Node;
use crate::node::UPLINK;

/// What is on a node: links, addresses and routes of the host, files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot(BTreeSet<String>);

/// How long the kernel may take to show that something is gone.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

impl Snapshot {
    pub(super) fn of(node: &Node) -> Self {
        let mut things = BTreeSet::new();
        node.netlink(async |netlink| {
            for link in netlink.links().await.expect("links") {
                if link.name == UPLINK || link.name == "lo" {
                    continue;
                }
                let name = &link.name;
                things.insert(format!("link {name}"));
                for info in netlink.addresses(link.index).await.expect("addresses") {
                    if is_lasting(info.address) {
                        things.insert(format!("address {} on {name}", info.address));
                    }
                }
                for route in netlink.routes(link.index).await.expect("routes") {
                    let destination = route.destination;
                    if destination.is_none_or(is_lasting) {
                        let destination = destination.map_or("default".into(), |ip| ip.to_string());
                        things.insert(format!("route {destination} over {name}"));
                    }
                }
            }
        });
        for folder in ["state", "run", "bpf"] {
            collect_files(&node.path(folder), &mut things);
        }
        Self(things)
    }

    /// Everything must be as it was, at the latest when the kernel has caught up.
    pub(super) fn expect_same(&self, node: &Node) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let after = Self::of(node);
            if *self == after {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let left: Vec<_> = after.0.difference(&self.0).collect();
                let lost: Vec<_> = self.0.difference(&after.0).collect();
                bail!("left behind: {left:?}; lost: {lost:?}");
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Link-local and multicast ones come and go with the state of a link.
fn is_lasting(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_multicast(),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unicast_link_local(),
    }
}

fn collect_files(folder: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_files(&path, things);
        } else {
            things.insert(format!("file {}", path.display()));
        }
    }
}
