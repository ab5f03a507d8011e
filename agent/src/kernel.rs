//! Makes the kernel's routes what the table says: the way of the host's stack, which is always right.
//!
//! Invariant: only what differs is touched, a route is replaced without a moment in which there is
//! none, and what is not wanted goes last. So another agent may have made what is there, and a packet
//! never sees the change. Every error is noted and the rest is done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay::mtu::vxlan_overhead;
use margay::naming::OVERLAY_DEVICE;
use margay::netlink::{
    LinkInfo, Netlink, NetlinkError, NewOverlay, OverlayInfo, RemoteHop, RemoteRoute,
};
use margay::sysctl::{self, SysctlError};
use margay::{error::chain, forwarding};
use margay_datastore::OverlayEnd;

use crate::remote::{RemoteTable, Way};
use crate::underlay::Underlay;

/// Something that the kernel would not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The overlay device vanished right after it was made.
    #[error("link {OVERLAY_DEVICE} vanished")]
    Vanished,
    /// There is a link of the name that is something else.
    #[error("link {OVERLAY_DEVICE} is no VXLAN device")]
    Foreign,
    /// The kernel knows no way to a node.
    #[error("no route to node address {node}")]
    NoRoute {
        /// The node's address.
        node: IpAddr,
    },
}

/// How the overlay is set up.
#[derive(Clone, Copy, Debug)]
pub struct OverlaySettings {
    /// UDP port.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// What one pass changed, and what it could not do.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Routes that were set or deleted.
    pub changed: usize,
    /// The overlay device, if there is one.
    pub overlay_ifindex: Option<u32>,
    /// What the kernel refused.
    pub errors: Vec<KernelError>,
    /// The routes that were wanted; `None` if it did not come to that.
    pub routes: Option<Vec<RemoteRoute>>,
    /// The overlay device, if there is one.
    pub overlay: Option<u32>,
}

/// The routes of this node as they are in the kernel.
pub struct Kernel {
    netlink: Netlink,
    settings: OverlaySettings,
    /// As of the last look; `None` before the first, and when something may have changed them.
    routes: Option<BTreeMap<IpNetwork, RemoteRoute>>,
}

impl Kernel {
    /// In the network namespace of the netlink socket.
    #[must_use]
    pub fn new(netlink: Netlink, settings: OverlaySettings) -> Self {
        Self { netlink, settings, routes: None }
    }

    /// The routes that this node has, as of the last pass.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes.as_ref().map_or(0, BTreeMap::len)
    }

    /// Has the next pass look at what there is, and not rely on what it made.
    pub fn look_again(&mut self) {
        self.routes = None;
    }

    /// Makes the kernel have what the table wants.
    pub async fn apply(
        &mut self,
        table: &RemoteTable,
        underlay: &Underlay,
        end: Option<&OverlayEnd>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.note(ensure_forwarding(table));
        let overlay = match end {
            Some(end) => outcome.note(self.ensure_overlay(end, underlay).await),
            None => None,
        };
        outcome.overlay_ifindex = overlay;
        if let Err(error) = self.look().await {
            outcome.errors.push(error.into());
            return outcome;
        }
        if let Some(ifindex) = overlay {
            outcome.note(self.ensure_neighbours(table, ifindex).await);
        }
        let wanted = self.wanted(table, overlay.zip(end), &mut outcome).await;
        self.set_routes(&wanted, &mut outcome).await;
        // What has no way at this moment keeps the one that it had.
        self.delete_routes(|destination| table.ways.contains_key(destination), &mut outcome).await;
        if let Some(ifindex) = overlay {
            outcome.note(self.delete_neighbours(table, ifindex).await);
        }
        Outcome { routes: Some(wanted), overlay, ..outcome }
    }

    async fn look(&mut self) -> Result<(), NetlinkError> {
        if self.routes.is_none() {
            let routes = self.netlink.remote_routes().await?.into_iter();
            self.routes = Some(routes.map(|route| (route.destination, route)).collect());
        }
        Ok(())
    }

    async fn wanted(
        &self,
        table: &RemoteTable,
        overlay: Option<(u32, &OverlayEnd)>,
        outcome: &mut Outcome,
    ) -> Vec<RemoteRoute> {
        let mut hops: BTreeMap<IpAddr, Option<RemoteHop>> = BTreeMap::new();
        let mut wanted = Vec::with_capacity(table.ways.len());
        for (&destination, way) in &table.ways {
            let (hop, source) = match way {
                Way::Own => (Some(RemoteHop::Unreachable), None),
                Way::Direct { node, .. } => {
                    if !hops.contains_key(node) {
                        hops.insert(*node, outcome.note(self.hop_to(*node).await));
                    }
                    (hops.get(node).cloned().flatten(), None)
                }
                Way::Overlay(peer) => match overlay {
                    Some((ifindex, end)) => {
                        let gateway = peer.gateway(&destination);
                        let (vni, node) = (self.settings.vni, peer.node);
                        (
                            Some(RemoteHop::Overlay { gateway, ifindex, vni, node }),
                            source(end, &destination),
                        )
                    }
                    None => (None, None),
                },
            };
            wanted.extend(hop.map(|hop| RemoteRoute { destination, hop, source }));
        }
        wanted
    }

    /// The node itself where it is on the link, else the router that leads to it, which then has to
    /// know the pods as well.
    async fn hop_to(&self, node: IpAddr) -> Result<RemoteHop, KernelError> {
        match self.netlink.next_hop_to(node).await? {
            Some((gateway, ifindex)) => Ok(RemoteHop::Via { gateway, ifindex }),
            None => Err(KernelError::NoRoute { node }),
        }
    }

    async fn set_routes(&mut self, wanted: &[RemoteRoute], outcome: &mut Outcome) {
        let routes = self.routes.get_or_insert_default();
        for route in wanted {
            if routes.get(&route.destination) == Some(route) {
                continue;
            }
            tracing::debug!(?route, "set");
            if outcome.note(self.netlink.replace_remote_route(route).await).is_some() {
                routes.insert(route.destination, route.clone());
                outcome.changed += 1;
            }
        }
    }

    async fn delete_routes(&mut self, keep: impl Fn(&IpNetwork) -> bool, outcome: &mut Outcome) {
        let routes = self.routes.get_or_insert_default();
        let surplus: Vec<IpNetwork> = routes.keys().filter(|to| !keep(to)).copied().collect();
        for destination in surplus {
            tracing::debug!(%destination, "delete");
            if outcome.note(self.netlink.delete_remote_route(destination).await).is_some() {
                routes.remove(&destination);
                outcome.changed += 1;
            }
        }
    }
}

/// The overlay device and its neighbours.
impl Kernel {
    /// Makes the device, or makes it right.
    async fn ensure_overlay(
        &mut self,
        end: &OverlayEnd,
        underlay: &Underlay,
    ) -> Result<u32, KernelError> {
        let is_ipv6_only = !underlay.addresses.iter().any(|address| address.is_ipv4());
        let carrier = underlay.addresses.iter().find(|address| address.is_ipv6() == is_ipv6_only);
        let room = carrier.map_or(0, |address| vxlan_overhead(address.ip()));
        let mtu = underlay.mtu.saturating_sub(room);
        let link = match self.netlink.link_by_name(OVERLAY_DEVICE).await? {
            Some(link) if self.is_as_wanted(&link, end).await? => link,
            other => self.make_overlay(other, end, mtu).await?,
        };
        if link.mtu != mtu {
            self.netlink.set_link_mtu(link.index, mtu).await?;
        }
        if !link.up {
            self.netlink.set_link_up(link.index).await?;
        }
        self.ensure_addresses(link.index, &end.addresses).await?;
        Ok(link.index)
    }

    async fn is_as_wanted(&self, link: &LinkInfo, end: &OverlayEnd) -> Result<bool, KernelError> {
        let info = self.netlink.overlay(link.index).await?.ok_or(KernelError::Foreign)?;
        let wanted = OverlayInfo { by_metadata: true, port: self.settings.port };
        Ok(info == wanted && link.mac == end.mac)
    }

    /// In place of one whose settings cannot be changed, and with which its routes go.
    async fn make_overlay(
        &mut self,
        present: Option<LinkInfo>,
        end: &OverlayEnd,
        mtu: u32,
    ) -> Result<LinkInfo, KernelError> {
        if let Some(link) = present {
            tracing::warn!("{OVERLAY_DEVICE} has other settings and is made anew");
            self.netlink.delete_link(link.index).await?;
        }
        self.look_again();
        let (name, mac, port) = (OVERLAY_DEVICE, end.mac, self.settings.port);
        self.netlink.create_overlay(&NewOverlay { name, mac, mtu, port }).await?;
        let link = self.netlink.link_by_name(name).await?.ok_or(KernelError::Vanished)?;
        // Where pools have different modes, what comes by VXLAN may be answered without.
        sysctl::ensure(&format!("ipv4/conf/{name}/rp_filter"), "2")?;
        if sysctl::has_ipv6(name) {
            // No link-local address, no solicitations: the neighbours are known.
            sysctl::ensure(&format!("ipv6/conf/{name}/addr_gen_mode"), "1")?;
            sysctl::ensure(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        }
        tracing::info!(name, mtu, port, "overlay device made");
        Ok(link)
    }

    async fn ensure_addresses(&self, ifindex: u32, wanted: &[IpAddr]) -> Result<(), KernelError> {
        let infos = self.netlink.addresses(ifindex).await?;
        let present: Vec<IpAddr> = infos.iter().map(|info| info.address).collect();
        for &address in wanted.iter().filter(|address| !present.contains(address)) {
            self.netlink.add_address(ifindex, address).await?;
        }
        for &address in present.iter().filter(|address| !wanted.contains(address)) {
            self.netlink.delete_address(ifindex, address).await?;
        }
        Ok(())
    }

    async fn ensure_neighbours(
        &self,
        table: &RemoteTable,
        ifindex: u32,
    ) -> Result<(), KernelError> {
        let present = self.netlink.permanent_neighbours(ifindex).await?;
        for (gateway, mac) in neighbours(table) {
            if present.get(&gateway) != Some(&mac) {
                self.netlink.set_permanent_neighbour(ifindex, gateway, mac).await?;
            }
        }
        Ok(())
    }

    async fn delete_neighbours(
        &self,
        table: &RemoteTable,
        ifindex: u32,
    ) -> Result<(), KernelError> {
        let wanted = neighbours(table);
        for gateway in self.netlink.permanent_neighbours(ifindex).await?.into_keys() {
            if !wanted.contains_key(&gateway) {
                self.netlink.delete_neighbour(ifindex, gateway).await?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    fn note<T, E: Into<KernelError>>(&mut self, outcome: Result<T, E>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.into();
                tracing::warn!(error = chain(&error), "refused by the kernel");
                self.errors.push(error);
                None
            }
        }
    }
}

fn neighbours(table: &RemoteTable) -> BTreeMap<IpAddr, [u8; 6]> {
    table.peers().map(|(destination, peer)| (peer.gateway(destination), peer.mac)).collect()
}

fn source(end: &OverlayEnd, destination: &IpNetwork) -> Option<IpAddr> {
    let mut addresses = end.addresses.iter();
    addresses.find(|address| address.is_ipv4() == destination.is_ipv4()).copied()
}

/// A node on which no pod has been yet forwards nothing, and need not; the agent may come first all the
/// same.
fn ensure_forwarding(table: &RemoteTable) -> Result<(), SysctlError> {
    if table.ways.keys().any(IpNetwork::is_ipv4) {
        forwarding::ensure_ipv4()?;
    }
    if table.ways.keys().any(IpNetwork::is_ipv6) {
        forwarding::ensure_ipv6()?;
    }
    Ok(())
}
