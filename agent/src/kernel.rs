//! Makes the kernel's routes what the table says: the way of the host's stack, which is always right.
//!
//! Invariant: only what differs is touched, a route is replaced without a moment in which there is
//! none, and what is not wanted goes last. So another agent may have made what is there, and a packet
//! never sees the change. Every error is noted and the rest is done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay::netlink::{Netlink, NetlinkError, RemoteHop, RemoteRoute};
use margay::sysctl::SysctlError;
use margay::{error::chain, forwarding};
use margay_datastore::OverlayEnd;

use crate::overlay::{Devices, Overlay, OverlaySettings};
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
    /// An overlay device vanished right after it was made.
    #[error("link {name} vanished")]
    Vanished {
        /// Its name.
        name: &'static str,
    },
    /// There is a link of the name of an overlay device that is something else.
    #[error("link {name} is no VXLAN device")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// The kernel knows no way to a node.
    #[error("no route to node address {node}")]
    NoRoute {
        /// The node's address.
        node: IpAddr,
    },
}

/// What one pass changed, and what it could not do.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Routes that were set or deleted.
    pub changed: usize,
    /// What the kernel refused.
    pub errors: Vec<KernelError>,
    /// The routes that were wanted; `None` if it did not come to that.
    pub routes: Option<Vec<RemoteRoute>>,
    /// The overlay devices.
    pub overlay: Devices,
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
        outcome.overlay = self.ensure_overlay(table, underlay, end, &mut outcome).await;
        if let Err(error) = self.look().await {
            outcome.errors.push(error.into());
            return outcome;
        }
        let mut surplus = Vec::new();
        for (ipv4, ifindex) in outcome.overlay.iter() {
            let found = self.overlay(underlay).ensure_peers(table, ipv4, ifindex).await;
            surplus.extend(outcome.note(found));
        }
        let wanted = self.wanted(table, end, &mut outcome).await;
        self.set_routes(&wanted, &mut outcome).await;
        // What has no way at this moment keeps the one that it had.
        self.delete_routes(|destination| table.ways.contains_key(destination), &mut outcome).await;
        for surplus in surplus {
            outcome.note(self.overlay(underlay).forget(surplus).await);
        }
        Outcome { routes: Some(wanted), ..outcome }
    }

    fn overlay<'a>(&'a self, underlay: &'a Underlay) -> Overlay<'a> {
        Overlay { netlink: &self.netlink, settings: self.settings, underlay }
    }

    /// Makes the overlay devices what they are to be. What the node itself sends comes from addresses of
    /// the first.
    async fn ensure_overlay(
        &mut self,
        table: &RemoteTable,
        underlay: &Underlay,
        end: Option<&OverlayEnd>,
        outcome: &mut Outcome,
    ) -> Devices {
        let overlay = self.overlay(underlay);
        let (mut devices, mut is_new) = ([None, None], false);
        let mut addresses = end.map_or(&[][..], |end| &end.addresses);
        for (device, ipv4) in devices.iter_mut().zip([true, false]) {
            let mut wanted_addresses = &[][..];
            if let Some(end) = end.filter(|_| overlay.takes(table, ipv4)) {
                wanted_addresses = std::mem::take(&mut addresses);
                let made = outcome.note(overlay.ensure(end, ipv4).await);
                *device = made.map(|(ifindex, _)| ifindex);
                // It may have been made all the same.
                is_new |= made.is_none_or(|(_, is_new)| is_new);
            }
            if device.is_none() {
                *device = outcome.note(overlay.left(ipv4).await).flatten();
            }
            // Which device is the first is not known where this node has no address at this moment.
            if let Some(ifindex) = *device
                && !underlay.addresses.is_empty()
            {
                outcome.note(overlay.ensure_addresses(ifindex, wanted_addresses).await);
            }
        }
        if is_new {
            self.look_again();
        }
        let [v4, v6] = devices;
        Devices { v4, v6 }
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
        end: Option<&OverlayEnd>,
        outcome: &mut Outcome,
    ) -> Vec<RemoteRoute> {
        let mut hops: BTreeMap<IpAddr, Option<RemoteHop>> = BTreeMap::new();
        let mut wanted = Vec::with_capacity(table.ways.len());
        for (&destination, way) in &table.ways {
            let (hop, source) = match way {
                Way::Own => (Some(RemoteHop::Unreachable), None),
                Way::Direct { node } => {
                    if !hops.contains_key(node) {
                        hops.insert(*node, outcome.note(self.hop_to(*node).await));
                    }
                    (hops.get(node).cloned().flatten(), None)
                }
                Way::Overlay(peer) => {
                    let gateway = peer.gateway(&destination);
                    let device = outcome.overlay.towards(peer.node);
                    let hop = device.map(|ifindex| RemoteHop::Overlay { gateway, ifindex });
                    (hop, end.and_then(|end| source(end, &destination)))
                }
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
