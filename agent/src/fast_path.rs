//! Makes margay's programs carry what the table says past the host's stack: the way that is faster.
//!
//! Invariant: the programs know a way only while those of the interface that it leads over are
//! attached, since what these learn is what keeps connections under NAT with the stack. Without any of
//! this the kernel's routes carry everything, so nothing here is an error of the agent's: it is noted
//! and tried again. The pods' maps are made by upkeep or by a node's first ADD, which know how large they are to be; until
//! then there is no pod either.
//!
//! Where it is switched off, or the host has IPsec policies, which only the stack minds, what an agent made before is taken back, and the programs are told of the overlay
//! alone, whose port pods may not send to. What earlier ABI versions know of ways is taken back always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use margay::mtu::vxlan_overhead;
use margay::netlink::{Netlink, NetlinkError, RemoteHop, RemoteRoute, has_ipsec_policies};
use margay_datapath::{
    AttachError, AttachMode, Datapath, DatapathError, LoadOptions, MapError, NodeDatapath,
    NodeInterface, Overlay, Pods, Remote, remote_mode,
};

use crate::overlay::{Devices, OverlaySettings};
use crate::remote::{RemoteTable, Way};

/// Something that did not work.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] DatapathError),
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Programs cannot be attached or detached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel does not say what it has.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The routes of a pass, and what they lead over.
#[derive(Clone, Copy, Debug)]
pub struct Routes<'a> {
    /// What the kernel was told.
    pub routes: &'a [RemoteRoute],
    /// The overlay devices.
    pub overlay: Devices,
    /// Their MAC address.
    pub overlay_mac: [u8; 6],
    /// MTU of the network between the nodes.
    pub underlay_mtu: u32,
}

/// The programs of this node, as of the last pass.
pub struct FastPath {
    root: PathBuf,
    options: LoadOptions,
    settings: OverlaySettings,
    is_on: bool,
    /// Whether IPsec policies keep it from being on, as of the last pass.
    is_held: bool,
    datapath: Option<NodeDatapath>,
    /// Interfaces with our programs.
    attached: BTreeMap<u32, NodeInterface>,
    /// Whether they still have them is to be seen.
    looks: bool,
    /// What `remote_*` holds; `None` before the first look.
    remotes: Option<BTreeMap<IpNetwork, Remote>>,
}

impl FastPath {
    /// With the pins below `root`; `lock_dir` is where their loading is locked.
    #[must_use]
    pub fn new(root: PathBuf, lock_dir: PathBuf, settings: OverlaySettings, is_on: bool) -> Self {
        Self {
            root,
            options: LoadOptions::new(lock_dir),
            settings,
            is_on,
            is_held: false,
            datapath: None,
            attached: BTreeMap::new(),
            looks: true,
            remotes: None,
        }
    }

    /// Has the next pass look at what there is, and not rely on what it made.
    pub fn look_again(&mut self) {
        self.datapath = None;
        self.remotes = None;
        self.looks = true;
    }

    /// Has programs of earlier ABI versions, which pods may go on with, leave all between nodes to the
    /// routes: nobody else keeps their maps right.
    ///
    /// # Errors
    /// When their maps cannot be read or written.
    pub fn withdraw_earlier(&self) -> Result<(), FastPathError> {
        if self.looks && Datapath::withdraw_earlier_ways(&self.root)? {
            tracing::info!("programs of an earlier version leave other nodes to the routes");
        }
        Ok(())
    }

    /// Makes the programs know the ways of `table`.
    ///
    /// # Errors
    /// When that cannot be done for all of them. The kernel's routes carry the rest.
    pub async fn apply(
        &mut self,
        netlink: &Netlink,
        table: &RemoteTable,
        routes: Routes<'_>,
    ) -> Result<(), FastPathError> {
        self.look_for_ipsec()?;
        if !self.open()? {
            return Ok(());
        }
        if !self.is_on || self.is_held {
            self.set_overlay(routes.overlay, routes.overlay_mac)?;
            return self.withdraw(netlink, &routes).await;
        }
        let wanted = interfaces(&routes);
        let attached = self.attach(netlink, &wanted).await;
        let usable: BTreeSet<u32> =
            self.attached.keys().filter(|ifindex| wanted.contains_key(ifindex)).copied().collect();
        self.set_overlay(routes.overlay, routes.overlay_mac)?;
        let remotes = remotes(table, &routes, &usable);
        self.set_remotes(&remotes)?;
        if let Some(datapath) = &self.datapath {
            datapath.take_over_from_pods()?;
        }
        self.detach(netlink, &wanted).await?;
        attached
    }

    /// Policies may want what goes between the nodes encrypted, or nothing else let in.
    fn look_for_ipsec(&mut self) -> Result<(), FastPathError> {
        let is_held = self.is_on && has_ipsec_policies()?;
        if is_held != self.is_held {
            self.is_held = is_held;
            self.look_again();
            match is_held {
                true => tracing::warn!("IPsec policies: all between nodes takes the routes"),
                false => tracing::info!("no IPsec policies any more: the fast path is back"),
            }
        }
        Ok(())
    }

    /// Whether there is anything to be fast for.
    fn open(&mut self) -> Result<bool, FastPathError> {
        if self.datapath.is_none() && Pods::open(&self.root)?.is_some() {
            self.datapath = Some(NodeDatapath::open_or_load(&self.root, &self.options)?);
        }
        Ok(self.datapath.is_some())
    }

    fn set_overlay(&self, devices: Devices, mac: [u8; 6]) -> Result<(), FastPathError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let overlay = match devices {
            Devices { v4: None, v6: None } => Overlay::default(),
            Devices { v4, v6 } => Overlay {
                ifindex_v4: v4.unwrap_or_default(),
                ifindex_v6: v6.unwrap_or_default(),
                vni: self.settings.vni,
                port: self.settings.port.to_be_bytes(),
                mac,
            },
        };
        if datapath.overlay()? != overlay {
            datapath.set_overlay(&overlay)?;
        }
        Ok(())
    }

    /// Takes back what an agent that was to be fast has made, its programs last: where these are, there
    /// may be more. Flows are forgotten, since what is direct today may be under NAT by the time that the
    /// programs learn again.
    async fn withdraw(
        &mut self,
        netlink: &Netlink,
        routes: &Routes<'_>,
    ) -> Result<(), FastPathError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        datapath.take_over_from_pods()?;
        if !self.looks {
            return Ok(());
        }
        let (handle, interfaces) = (netlink.handle(), interfaces(routes));
        let remotes = datapath.remotes().entries()?;
        let mut is_there = !remotes.is_empty();
        for (&ifindex, &interface) in &interfaces {
            // Of whatever build, and be it one of two.
            let found = NodeDatapath::inspect(handle, ifindex, interface).await?;
            is_there |= found.iter().any(Option::is_some);
        }
        if is_there {
            for prefix in remotes.into_keys() {
                datapath.remotes().remove(prefix)?;
            }
            datapath.flows().clear()?;
            for (ifindex, interface) in interfaces {
                datapath.detach(handle, ifindex, interface, MODE).await?;
            }
        }
        self.looks = false;
        Ok(())
    }

    async fn attach(
        &mut self,
        netlink: &Netlink,
        wanted: &BTreeMap<u32, NodeInterface>,
    ) -> Result<(), FastPathError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let mut outcome = Ok(());
        for (&ifindex, &interface) in wanted {
            if !self.looks && self.attached.get(&ifindex) == Some(&interface) {
                continue;
            }
            match ensure_attached(datapath, netlink, ifindex, interface).await {
                Ok(()) => drop(self.attached.insert(ifindex, interface)),
                Err(error) => {
                    self.attached.remove(&ifindex);
                    outcome = Err(error.into());
                }
            }
        }
        self.looks = false;
        outcome
    }

    async fn detach(
        &mut self,
        netlink: &Netlink,
        wanted: &BTreeMap<u32, NodeInterface>,
    ) -> Result<(), FastPathError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let surplus = self.attached.iter().filter(|(ifindex, _)| !wanted.contains_key(ifindex));
        let surplus: Vec<_> = surplus.map(|(ifindex, interface)| (*ifindex, *interface)).collect();
        for (ifindex, interface) in surplus {
            datapath.detach(netlink.handle(), ifindex, interface, MODE).await?;
            self.attached.remove(&ifindex);
        }
        Ok(())
    }

    /// What is not wanted goes last.
    fn set_remotes(&mut self, wanted: &BTreeMap<IpNetwork, Remote>) -> Result<(), FastPathError> {
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let mut present = match self.remotes.take() {
            Some(present) => present,
            None => datapath.remotes().entries()?,
        };
        for (prefix, remote) in wanted {
            if present.get(prefix) != Some(remote) {
                datapath.remotes().set(*prefix, remote)?;
                present.insert(*prefix, *remote);
            }
        }
        for prefix in present.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            datapath.remotes().remove(*prefix)?;
        }
        present.retain(|prefix, _| wanted.contains_key(prefix));
        self.remotes = Some(present);
        Ok(())
    }
}

/// As the pods' are by default. An uplink whose clsact is somebody else's keeps its filters.
const MODE: AttachMode = AttachMode::Clsact;

async fn ensure_attached(
    datapath: &NodeDatapath,
    netlink: &Netlink,
    ifindex: u32,
    interface: NodeInterface,
) -> Result<(), AttachError> {
    let netlink = netlink.handle();
    match datapath.is_attached(netlink, ifindex, interface, MODE).await? {
        true => Ok(()),
        false => datapath.attach(netlink, ifindex, interface, MODE).await,
    }
}

/// The interfaces that ways lead over.
fn interfaces(routes: &Routes<'_>) -> BTreeMap<u32, NodeInterface> {
    let ways = routes.routes.iter().filter_map(|route| match route.hop {
        RemoteHop::Via { ifindex, .. } => Some((ifindex, NodeInterface::Uplink)),
        RemoteHop::Overlay { .. } | RemoteHop::Unreachable => None,
    });
    let overlay = routes.overlay.iter().map(|(_, ifindex)| (ifindex, NodeInterface::Overlay));
    ways.chain(overlay).collect()
}

/// The ways, but for those over interfaces without our programs.
fn remotes(
    table: &RemoteTable,
    routes: &Routes<'_>,
    usable: &BTreeSet<u32>,
) -> BTreeMap<IpNetwork, Remote> {
    let remote = |route: &RemoteRoute| {
        let (node, mac, mode, mtu) = match (table.ways.get(&route.destination)?, &route.hop) {
            (Way::Direct { node }, RemoteHop::Via { ifindex, .. }) if usable.contains(ifindex) => {
                (*node, [0; 6], remote_mode::PLAIN, routes.underlay_mtu)
            }
            (Way::Overlay(peer), RemoteHop::Overlay { ifindex, .. })
                if usable.contains(ifindex) =>
            {
                let mtu = routes.underlay_mtu.saturating_sub(vxlan_overhead(peer.node));
                (peer.node, peer.mac, remote_mode::VXLAN, mtu)
            }
            _ => return None,
        };
        let remote = Remote { node: octets(node), mtu, mac, mode, reserved: 0 };
        Some((route.destination, remote))
    };
    routes.routes.iter().filter_map(remote).collect()
}

fn octets(node: IpAddr) -> [u8; 16] {
    match node {
        IpAddr::V4(node) => node.to_ipv6_mapped().octets(),
        IpAddr::V6(node) => node.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Peer;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_programs_know_what_leads_over_interfaces_that_have_them() {
        let peer = Peer { node: ip("fd99::2"), mac: [2; 6] };
        let direct = Way::Direct { node: ip("fd99::3") };
        let [plain, overlay, own] =
            ["fd00::40/122", "10.0.2.0/26", "10.0.3.0/26"].map(|to| to.parse().unwrap());
        let table = RemoteTable {
            ways: [(plain, direct), (overlay, Way::Overlay(peer)), (own, Way::Own)].into(),
            ..RemoteTable::default()
        };
        let route = |destination, hop| RemoteRoute { destination, hop, source: None };
        let routes = [
            route(plain, RemoteHop::Via { gateway: ip("fd99::3"), ifindex: 3 }),
            route(overlay, RemoteHop::Overlay { gateway: ip("fe80::2"), ifindex: 7 }),
            route(own, RemoteHop::Unreachable),
        ];
        let routes = Routes {
            routes: &routes,
            overlay: Devices { v4: Some(6), v6: Some(7) },
            overlay_mac: [4; 6],
            underlay_mtu: 1500,
        };
        let interfaces = interfaces(&routes);
        let [device, uplink] = [NodeInterface::Overlay, NodeInterface::Uplink];
        assert_eq!(interfaces, [(3, uplink), (6, device), (7, device)].into());

        let all = remotes(&table, &routes, &interfaces.into_keys().collect());
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[&plain],
            Remote {
                node: octets(ip("fd99::3")),
                mtu: 1500,
                mac: [0; 6],
                mode: remote_mode::PLAIN,
                reserved: 0,
            },
        );
        assert_eq!((all[&overlay].mtu, all[&overlay].mode), (1430, remote_mode::VXLAN));
        assert_eq!((all[&overlay].node, all[&overlay].mac), (octets(peer.node), peer.mac));
        assert_eq!(remotes(&table, &routes, &[3].into()).into_keys().collect::<Vec<_>>(), [plain]);
    }
}
