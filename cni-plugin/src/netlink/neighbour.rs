//! Neighbour entries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
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

    /// Removes a neighbour entry; content if there is none.
    ///
    /// # Errors
    /// Any errno but those that say so.
    pub async fn delete_neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<(), NetlinkError> {
        let object = format!("{address} on link with index {ifindex}");
        let message = RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, address));
        match self.execute("delete neighbour", &object, message, 0).await {
            Err(error) if error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    /// The permanent neighbours on the interface, with their MAC addresses. Dumps the namespace's
    /// neighbours: for a daemon.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn permanent_neighbours(
        &self,
        ifindex: u32,
    ) -> Result<BTreeMap<IpAddr, [u8; 6]>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.query("list", "neighbours", message, NLM_F_DUMP).await?;
        let of_interface = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == ifindex => {
                Some(message)
            }
            _ => None,
        });
        Ok(of_interface.filter_map(permanent).collect())
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

fn permanent(message: NeighbourMessage) -> Option<(IpAddr, [u8; 6])> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    let info = neighbour_info(RouteNetlinkMessage::NewNeighbour(message))?;
    info.permanent.then_some((address, info.mac?))
}

fn neighbour_info(message: RouteNetlinkMessage) -> Option<NeighbourInfo> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(NeighbourInfo { mac, permanent: message.header.state == NeighbourState::Permanent })
}
