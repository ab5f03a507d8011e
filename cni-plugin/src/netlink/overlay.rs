//! The VXLAN device of an overlay, in the mode in which whoever sends a packet says where to: a route or
//! a program, and no forwarding table.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkInfo as Info,
};
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
}

/// What the kernel says of an overlay device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayInfo {
    /// Where to is said packet by packet.
    pub by_metadata: bool,
    /// UDP port.
    pub port: u16,
}

impl Netlink {
    /// Makes an overlay device, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` when the kernel has no VXLAN. Setting it up fails
    /// with `EADDRINUSE` when another device or program has the port.
    pub async fn create_overlay(&self, overlay: &NewOverlay<'_>) -> Result<(), NetlinkError> {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(overlay.name)
            .address(overlay.mac.to_vec())
            .mtu(overlay.mtu)
            .build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            Info::Kind(InfoKind::Vxlan),
            Info::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(overlay.port),
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
            InfoVxlan::Port(port) => info.port = port,
            _ => {}
        }
    }
    Some(info)
}
