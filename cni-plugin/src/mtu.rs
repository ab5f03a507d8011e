//! The MTU of a pod's veth pair: the configured one, else that of the host's way out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{LinkInfo, Netlink, NetlinkError};

/// MTU where nothing says otherwise, in bytes: that of Ethernet.
const DEFAULT_MTU: u32 = 1500;

/// Least MTU with which the kernel does IPv6 on an interface (RFC 8200, section 5).
const LEAST_MTU_V6: u32 = 1280;

/// What VXLAN puts in front of a packet on its way to a node, in bytes: IP, UDP, VXLAN and Ethernet
/// headers.
#[must_use]
pub fn vxlan_overhead(node: IpAddr) -> u32 {
    let ip = if node.is_ipv4() { 20 } else { 40 };
    ip + 8 + 8 + 14
}

/// Destinations that only a default route leads to (TEST-NET-1 of RFC 5737, the documentation
/// prefix of RFC 3849). They are looked up, never sent to.
pub const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// An MTU and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// Network layer, in bytes.
    pub bytes: u32,
    /// Where it comes from.
    pub source: MtuSource,
}

/// Where an MTU comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MtuSource {
    /// The `mtu` key of the network configuration.
    Configured,
    /// The interface of the default route.
    Interface(String),
    /// The same, less what VXLAN puts in front of a packet.
    Overlay(String),
    /// There is no default route.
    Default,
}

impl fmt::Display for MtuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::Interface(name) => write!(f, "interface {name} of the default route"),
            Self::Overlay(name) => {
                write!(f, "interface {name} of the default route, with room for VXLAN")
            }
            Self::Default => f.write_str("default, for want of a default route"),
        }
    }
}

/// An MTU with which the pod's addresses cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("MTU {bytes} ({source_of}) is too small for IPv6, which takes {LEAST_MTU_V6}")]
pub struct MtuTooSmall {
    bytes: u32,
    source_of: MtuSource,
}

impl Mtu {
    /// Verifies that packets of these addresses' families can have it.
    ///
    /// # Errors
    /// When there is an IPv6 address, and less than IPv6 needs.
    pub fn must_carry(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), MtuTooSmall> {
        if self.bytes < LEAST_MTU_V6 && addresses.into_iter().any(|address| address.is_ipv6()) {
            return Err(MtuTooSmall { bytes: self.bytes, source_of: self.source.clone() });
        }
        Ok(())
    }

    /// Finds the MTU: two look-ups at the most, no dump of the routing table. `overlay` leaves room for
    /// VXLAN, which is between nodes over IPv4 where the default route is of IPv4.
    ///
    /// # Errors
    /// When a netlink request fails.
    pub async fn find(
        netlink: &Netlink,
        configured: Option<u32>,
        overlay: bool,
    ) -> Result<Self, NetlinkError> {
        if let Some(bytes) = configured {
            return Ok(Self { bytes, source: MtuSource::Configured });
        }
        for destination in ELSEWHERE {
            let Some(route) = netlink.route_to(destination).await? else { continue };
            let Some(ifindex) = route.ifindex else { continue };
            if let Some(link) = netlink.link_by_index(ifindex).await? {
                return Ok(Self::of_interface(link, overlay.then_some(destination)));
            }
        }
        let room = if overlay { vxlan_overhead(ELSEWHERE[0]) } else { 0 };
        Ok(Self { bytes: DEFAULT_MTU - room, source: MtuSource::Default })
    }

    fn of_interface(link: LinkInfo, underlay: Option<IpAddr>) -> Self {
        match underlay {
            None => Self { bytes: link.mtu, source: MtuSource::Interface(link.name) },
            Some(address) => Self {
                bytes: link.mtu.saturating_sub(vxlan_overhead(address)),
                source: MtuSource::Overlay(link.name),
            },
        }
    }
}
