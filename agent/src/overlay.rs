//! This node's VXLAN devices, and what they know of other nodes.
//!
//! A device sends and receives by one family: the node's own, IPv4 where it has both. Where VXLAN of another
//! node goes by the other, there is a second one. Each has a table with the MAC address and the node of
//! every other's device. Routes lead to neighbours, whose MAC addresses are known: nothing is ever asked
//! for or flooded. One that is of no use any more stays, for what others may still send.

use std::collections::BTreeMap;
use std::net::IpAddr;

use margay::mtu::{ELSEWHERE, vxlan_overhead};
use margay::naming::{OVERLAY_DEVICE, OVERLAY_DEVICE_V6};
use margay::netlink::{LinkInfo, Netlink, NetlinkError, NewOverlay, OverlayInfo};
use margay::sysctl::{self, SysctlError};
use margay_datastore::OverlayEnd;

use crate::kernel::KernelError;
use crate::remote::RemoteTable;
use crate::underlay::Underlay;

/// How the overlay is set up.
#[derive(Clone, Copy, Debug)]
pub struct OverlaySettings {
    /// UDP port.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// The interface indices of the devices that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// Of the one whose outer headers are IPv4's.
    pub v4: Option<u32>,
    /// Of the one whose outer headers are IPv6's.
    pub v6: Option<u32>,
}

impl Devices {
    /// Both, with whether they are IPv4's.
    pub fn iter(self) -> impl Iterator<Item = (bool, u32)> {
        [(true, self.v4), (false, self.v6)]
            .into_iter()
            .filter_map(|(ipv4, device)| Some((ipv4, device?)))
    }

    /// The one that reaches a node.
    #[must_use]
    pub fn towards(self, node: IpAddr) -> Option<u32> {
        if node.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Makes the devices, for one pass.
pub(crate) struct Overlay<'a> {
    pub(crate) netlink: &'a Netlink,
    pub(crate) settings: OverlaySettings,
    pub(crate) underlay: &'a Underlay,
}

impl Overlay<'_> {
    /// Whether there has to be a device of a family. Without any address nothing is known of that.
    pub(crate) fn takes(&self, table: &RemoteTable, ipv4: bool) -> bool {
        let has = |ipv4| self.underlay.addresses.iter().any(|own| own.is_ipv4() == ipv4);
        has(ipv4) && (ipv4 || !has(true) || table.vxlan_comes_by_ipv6)
    }

    /// Makes the device of a family, or makes it right. `true` if it was made anew.
    pub(crate) async fn ensure(
        &self,
        end: &OverlayEnd,
        ipv4: bool,
    ) -> Result<(u32, bool), KernelError> {
        let mtu = self.underlay.mtu.saturating_sub(vxlan_overhead(ELSEWHERE[usize::from(!ipv4)]));
        let present = self.netlink.link_by_name(name(ipv4)).await?;
        let (link, is_new) = match present {
            Some(link) if self.is_as_wanted(&link, end).await? => (link, false),
            other => (self.make(other, end, mtu, ipv4).await?, true),
        };
        if link.mtu != mtu {
            self.netlink.set_link_mtu(link.index, mtu).await?;
        }
        set_sysctls(name(ipv4))?;
        if !link.up {
            self.netlink.set_link_up(link.index).await?;
        }
        Ok((link.index, is_new))
    }

    /// The device of a family that is there and up, though it need not be. One with other settings goes: it
    /// has a port that nobody guards, or, without a table, that of both families.
    pub(crate) async fn left(&self, ipv4: bool) -> Result<Option<u32>, KernelError> {
        let Some(link) = self.netlink.link_by_name(name(ipv4)).await? else { return Ok(None) };
        match self.netlink.overlay(link.index).await? {
            Some(info) if info == self.wanted() => Ok(Some(link.index).filter(|_| link.up)),
            Some(_) => {
                self.netlink.delete_link(link.index).await?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn is_as_wanted(&self, link: &LinkInfo, end: &OverlayEnd) -> Result<bool, KernelError> {
        let info = self.netlink.overlay(link.index).await?;
        let info = info.ok_or_else(|| KernelError::Foreign { name: link.name.clone() })?;
        Ok(info == self.wanted() && link.mac == end.mac)
    }

    fn wanted(&self) -> OverlayInfo {
        let OverlaySettings { port, vni } = self.settings;
        OverlayInfo { by_metadata: false, learns: false, vni, port }
    }

    /// In place of one whose settings cannot be changed, and with which its routes go.
    async fn make(
        &self,
        present: Option<LinkInfo>,
        end: &OverlayEnd,
        mtu: u32,
        ipv4: bool,
    ) -> Result<LinkInfo, KernelError> {
        let name = name(ipv4);
        if let Some(link) = present {
            tracing::warn!("{name} has other settings and is made anew");
            self.netlink.delete_link(link.index).await?;
        }
        let OverlaySettings { port, vni } = self.settings;
        let overlay = NewOverlay { name, mac: end.mac, mtu, port, vni, ipv4 };
        self.netlink.create_overlay(&overlay).await?;
        let link = self.netlink.link_by_name(name).await?;
        let link = link.ok_or(KernelError::Vanished { name })?;
        tracing::info!(name, mtu, port, "overlay device made");
        Ok(link)
    }

    pub(crate) async fn ensure_addresses(
        &self,
        ifindex: u32,
        wanted: &[IpAddr],
    ) -> Result<(), KernelError> {
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

    /// Has a device know the other nodes of the table, and says what it knows besides.
    pub(crate) async fn ensure_peers(
        &self,
        table: &RemoteTable,
        ipv4: bool,
        ifindex: u32,
    ) -> Result<Surplus, NetlinkError> {
        let Peers { nodes, neighbours } = Peers::of(table, ipv4);
        let mut entries = self.netlink.forwarding_entries(ifindex).await?;
        for (mac, node) in nodes {
            if entries.remove(&mac) != Some(Some(node)) {
                self.netlink.set_forwarding_entry(ifindex, mac, node).await?;
            }
        }
        let mut present = self.netlink.permanent_neighbours(ifindex).await?;
        for (gateway, mac) in neighbours {
            if present.remove(&gateway) != Some(mac) {
                self.netlink.set_permanent_neighbour(ifindex, gateway, mac).await?;
            }
        }
        Ok(Surplus {
            ifindex,
            neighbours: present.into_keys().collect(),
            entries: entries.into_keys().collect(),
        })
    }

    /// Has a device forget them.
    pub(crate) async fn forget(&self, surplus: Surplus) -> Result<(), NetlinkError> {
        for gateway in surplus.neighbours {
            self.netlink.delete_neighbour(surplus.ifindex, gateway).await?;
        }
        for mac in surplus.entries {
            self.netlink.delete_forwarding_entry(surplus.ifindex, mac).await?;
        }
        Ok(())
    }
}

/// What a device knows of nodes that are none any more.
pub(crate) struct Surplus {
    ifindex: u32,
    neighbours: Vec<IpAddr>,
    entries: Vec<[u8; 6]>,
}

/// What a device is to know.
struct Peers {
    /// At which node a MAC address is.
    nodes: BTreeMap<[u8; 6], IpAddr>,
    /// Which MAC address stands for a node.
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

impl Peers {
    fn of(table: &RemoteTable, ipv4: bool) -> Self {
        let peers = || table.peers(ipv4);
        Self {
            nodes: peers().map(|(_, peer)| (peer.mac, peer.node)).collect(),
            neighbours: peers().map(|(to, peer)| (peer.gateway(to), peer.mac)).collect(),
        }
    }
}

fn set_sysctls(device: &str) -> Result<(), SysctlError> {
    // Where pools have different modes, what comes by VXLAN may be answered without.
    sysctl::ensure(&format!("ipv4/conf/{device}/rp_filter"), "2")?;
    if sysctl::has_ipv6(device) {
        // No link-local address, no solicitations: the neighbours are known.
        sysctl::ensure(&format!("ipv6/conf/{device}/addr_gen_mode"), "1")?;
        sysctl::ensure(&format!("ipv6/conf/{device}/accept_ra"), "0")?;
    }
    Ok(())
}

const fn name(ipv4: bool) -> &'static str {
    if ipv4 { OVERLAY_DEVICE } else { OVERLAY_DEVICE_V6 }
}
