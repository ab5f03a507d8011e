//! A VXLAN device of an overlay, and its table: which node a MAC address is at. Nothing is learnt, and
//! nothing flooded.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkInfo as Info,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Netlink, NetlinkError};

/// An overlay device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOverlay<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC address. VXLAN drops frames that come with the receiving device's own, so each node's
    /// must be another.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// UDP port that it sends to and receives at.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Whether its outer headers are IPv4's, without a checksum over UDP, or IPv6's.
    pub ipv4: bool,
}

/// What the kernel says of an overlay device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayInfo {
    /// Where to is said packet by packet, and not by a table.
    pub by_metadata: bool,
    /// Its table learns from what comes in.
    pub learns: bool,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Netlink {
    /// Makes an overlay device, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, or another VXLAN device has the same network identifier and port;
    /// `EOPNOTSUPP` when the kernel has no VXLAN. Setting it up fails with `EADDRINUSE` when a device
    /// without a table, or a program, has the port.
    pub async fn create_overlay(&self, overlay: &NewOverlay<'_>) -> Result<(), NetlinkError> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(overlay.name)
            .address(overlay.mac.to_vec())
            .mtu(overlay.mtu)
            .build();
        // The kernel takes the family from where it would flood to, which is nowhere.
        let family = match overlay.ipv4 {
            true => InfoVxlan::UDPCsum(false),
            false => InfoVxlan::Group6(Ipv6Addr::UNSPECIFIED),
        };
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            Info::Kind(InfoKind::Vxlan),
            Info::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(overlay.vni),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(overlay.port),
                family,
            ])),
        ]));
        let message = RouteNetlinkMessage::NewLink(message);
        self.execute("create overlay", overlay.name, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// The overlay device of this index; `None` if the link is gone or of another kind.
    ///
    /// # Errors
    /// Any errno but `ENODEV`.
    pub async fn overlay(&self, ifindex: u32) -> Result<Option<OverlayInfo>, NetlinkError> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex).build();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let message = RouteNetlinkMessage::GetLink(message);
        let object = format!("with index {ifindex}");
        match self.query("look up overlay", &object, message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(overlay_info)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has an overlay device send what is for a MAC address to a node, in place of any other.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` when the device's outer headers are of the other family. Any errno.
    pub async fn set_forwarding_entry(
        &self,
        ifindex: u32,
        mac: [u8; 6],
        node: IpAddr,
    ) -> Result<(), NetlinkError> {
        let mut message = forwarding_entry(ifindex, mac);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(node.into()));
        let object = format!("for {node} on link with index {ifindex}");
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.execute("set forwarding entry", &object, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes what an overlay device knows of a MAC address; content if that is nothing.
    ///
    /// # Errors
    /// Any errno but those that say so.
    pub async fn delete_forwarding_entry(
        &self,
        ifindex: u32,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let object = format!("on link with index {ifindex}");
        let message = RouteNetlinkMessage::DelNeighbour(forwarding_entry(ifindex, mac));
        match self.execute("delete forwarding entry", &object, message, 0).await {
            Err(error) if error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    /// Which node an overlay device sends to, by MAC address; `None` for an entry that says more than that, or
    /// something else. Dumps the namespace's tables: for a daemon.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn forwarding_entries(
        &self,
        ifindex: u32,
    ) -> Result<BTreeMap<[u8; 6], Option<IpAddr>>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let message = RouteNetlinkMessage::GetNeighbour(message);
        let answers = self.query("list", "forwarding entries", message, NLM_F_DUMP).await?;
        Ok(answers.into_iter().filter_map(|answer| forwarding(answer, ifindex)).collect())
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// Any errno.
    pub async fn set_link_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex).mtu(mtu).build();
        let message = RouteNetlinkMessage::NewLink(message);
        self.execute("set MTU of link", &format!("with index {ifindex}"), message, 0).await
    }
}

fn forwarding_entry(ifindex: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

fn forwarding(answer: RouteNetlinkMessage, of: u32) -> Option<([u8; 6], Option<IpAddr>)> {
    let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
    if message.header.ifindex != of {
        return None;
    }
    let (mut mac, mut node, mut is_plain) = (None, None, true);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            NeighbourAttribute::Destination(address) => node = address_of(&address),
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::IfIndex(_) => is_plain = false,
            _ => {}
        }
    }
    Some((mac?, node.filter(|_| is_plain)))
}

/// An address whose family the message does not name: it is of bridges.
fn address_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some((*v4).into()),
        NeighbourAddress::Inet6(v6) => Some((*v6).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(&bytes[..]).ok().map(|v4| Ipv4Addr::from(v4).into()),
            _ => <[u8; 16]>::try_from(&bytes[..]).ok().map(|v6| Ipv6Addr::from(v6).into()),
        },
        _ => None,
    }
}

fn overlay_info(message: RouteNetlinkMessage) -> Option<OverlayInfo> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let infos = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let attributes = infos.into_iter().find_map(|info| match info {
        Info::Data(InfoData::Vxlan(attributes)) => Some(attributes),
        _ => None,
    })?;
    let mut info = OverlayInfo::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::CollectMetadata(by_metadata) => info.by_metadata = by_metadata,
            InfoVxlan::Learning(learns) => info.learns = learns,
            InfoVxlan::Id(vni) => info.vni = vni,
            InfoVxlan::Port(port) => info.port = port,
            _ => {}
        }
    }
    Some(info)
}
