//! Neighbour entries.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use super::address::family;
use super::{Netlink, NetlinkError};

/// What the kernel says of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourInfo {
    /// Link-layer address, if resolved.
    pub mac: Option<[u8; 6]>,
    /// Never expires and is never probed.
    pub permanent: bool,
}

impl Netlink {
    /// Makes `address` a permanent neighbour on the interface, in place of any other entry.
    ///
    /// # Errors
    /// Any errno.
    pub async fn set_permanent_neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let mut message = neighbour(ifindex, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let object = format!("{address} on link with index {ifindex}");
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.execute("set neighbour", &object, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// The neighbour entry for `address` on the interface, if there is one.
    ///
    /// # Errors
    /// Any errno but `ENOENT`.
    pub async fn neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<NeighbourInfo>, NetlinkError> {
        let object = format!("{address} on link with index {ifindex}");
        let message = RouteNetlinkMessage::GetNeighbour(neighbour(ifindex, address));
        match self.query("look up neighbour", &object, message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(neighbour_info)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn neighbour_info(message: RouteNetlinkMessage) -> Option<NeighbourInfo> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(NeighbourInfo { mac, permanent: message.header.state == NeighbourState::Permanent })
}
