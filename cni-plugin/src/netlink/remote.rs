//! Routes to the pods of other nodes, and those that keep packets for nobody from going round.
//!
//! They have a protocol number of their own, so that who makes them finds them again by it, and a
//! priority behind that of the routes to this node's pods: an address that has come to this node is
//! reached here, whatever is still known of where it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};

use super::route::{ip, no_route, to};
use super::{Netlink, NetlinkError};

/// Number in the protocol field of the routes made here. As free as [`super::ROUTE_PROTOCOL`].
pub const REMOTE_ROUTE_PROTOCOL: u8 = 78;

/// Priority (metric) of the routes made here. IPv6 routes that name none have 1024, IPv4 routes 0.
const PRIORITY: u32 = 2048;

/// A route to pods that are not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRoute {
    /// Where to.
    pub destination: IpNetwork,
    /// Which way.
    pub hop: RemoteHop,
    /// What the node itself sends there comes from this address; the kernel's choice without.
    pub source: Option<IpAddr>,
}

/// Which way packets take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteHop {
    /// None: whoever sends there is told that it is unreachable.
    Unreachable,
    /// Over a router, or the node itself where that is on the link.
    Via {
        /// The router, of either family.
        gateway: IpAddr,
        /// The interface that it is reached by.
        ifindex: u32,
    },
    /// Through the overlay.
    Overlay {
        /// Stands for the node on the overlay, as a neighbour whose MAC address is known.
        gateway: IpAddr,
        /// The overlay device.
        ifindex: u32,
    },
}

impl Netlink {
    /// Makes a route, in place of another one made here to the same destination. There is no moment
    /// without either.
    ///
    /// # Errors
    /// Any errno; `ENETUNREACH` or `EINVAL` when the router is not on the link.
    pub async fn replace_remote_route(&self, route: &RemoteRoute) -> Result<(), NetlinkError> {
        let object = route.destination.to_string();
        let message = RouteNetlinkMessage::NewRoute(message(route));
        self.execute("set route", &object, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Deletes the route to a destination that was made here; content if there is none.
    ///
    /// # Errors
    /// Any errno but those that say that there is none.
    pub async fn delete_remote_route(&self, destination: IpNetwork) -> Result<(), NetlinkError> {
        let mut message = header(destination);
        message.header.scope = RouteScope::NoWhere;
        let object = destination.to_string();
        let message = RouteNetlinkMessage::DelRoute(message);
        match self.execute("delete route", &object, message, 0).await {
            Err(error) if error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    /// The router and the interface that a packet to `address` would take at this moment; the router is
    /// `address` itself where that is on the link. `None` if there is no way.
    ///
    /// # Errors
    /// Any errno but those that say that there is no way.
    pub async fn next_hop_to(
        &self,
        address: IpAddr,
    ) -> Result<Option<(IpAddr, u32)>, NetlinkError> {
        let message = RouteNetlinkMessage::GetRoute(to(IpNetwork::from(address)));
        let answers = match self.query("look up way", &address.to_string(), message, 0).await {
            Err(error) if no_route(&error) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.into_iter().find_map(|answer| next_hop(&answer, address)))
    }

    /// Every route made here. Dumps the namespace's routes: for a daemon.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn remote_routes(&self) -> Result<Vec<RemoteRoute>, NetlinkError> {
        let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let answers = self.query("list", "routes", message, NLM_F_DUMP).await?;
        Ok(answers.into_iter().filter_map(remote_route).collect())
    }
}

fn header(destination: IpNetwork) -> RouteMessage {
    let mut message = to(destination);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(REMOTE_ROUTE_PROTOCOL);
    message.attributes.push(RouteAttribute::Priority(PRIORITY));
    message
}

fn message(route: &RemoteRoute) -> RouteMessage {
    let mut message = header(route.destination);
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    match &route.hop {
        RemoteHop::Unreachable => message.header.kind = RouteType::Unreachable,
        RemoteHop::Via { gateway, ifindex } => {
            add_gateway(&mut message, route.destination, *gateway, *ifindex);
        }
        RemoteHop::Overlay { gateway, ifindex } => {
            add_gateway(&mut message, route.destination, *gateway, *ifindex);
            message.header.flags = RouteFlags::Onlink;
        }
    }
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message
}

fn add_gateway(message: &mut RouteMessage, to: IpNetwork, gateway: IpAddr, ifindex: u32) {
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message.attributes.push(match gateway {
        IpAddr::V6(gateway) if to.is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        _ => RouteAttribute::Gateway(gateway.into()),
    });
}

fn next_hop(message: &RouteNetlinkMessage, address: IpAddr) -> Option<(IpAddr, u32)> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut gateway, mut interface) = (address, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(router) => gateway = ip(router)?,
            RouteAttribute::Via(RouteVia::Inet6(router)) => gateway = (*router).into(),
            RouteAttribute::Oif(ifindex) => interface = Some(*ifindex),
            _ => {}
        }
    }
    Some((gateway, interface?))
}

/// The route of a message, if it was made here. One that is not as it is made here, since somebody
/// has changed it, comes out different from any that is wanted.
fn remote_route(message: RouteNetlinkMessage) -> Option<RemoteRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if u8::from(message.header.protocol) != REMOTE_ROUTE_PROTOCOL {
        return None;
    }
    let nowhere = match message.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut destination, mut source) = (nowhere, None);
    let (mut gateway, mut ifindex) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::Oif(index) => ifindex = *index,
            _ => {}
        }
    }
    let is_changed = message.attributes.iter().any(|part| matches!(part, RouteAttribute::Encap(_)));
    let hop = match (message.header.kind, gateway.filter(|_| !is_changed)) {
        (RouteType::Unicast, Some(gateway))
            if message.header.flags.contains(RouteFlags::Onlink) =>
        {
            RemoteHop::Overlay { gateway, ifindex }
        }
        (RouteType::Unicast, Some(gateway)) => RemoteHop::Via { gateway, ifindex },
        (RouteType::Unicast, None) => RemoteHop::Via { gateway: nowhere, ifindex },
        _ => RemoteHop::Unreachable,
    };
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    Some(RemoteRoute { destination, hop, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_back_as_it_was_made() {
        let gateways = ["192.168.0.2", "fe80::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        for (destination, source) in [("10.1.0.0/26", "10.1.9.1"), ("fd00::/122", "fd00::9")] {
            for gateway in gateways {
                let destination: IpNetwork = destination.parse().unwrap();
                if destination.is_ipv6() && gateway.is_ipv4() {
                    continue;
                }
                for hop in [
                    RemoteHop::Unreachable,
                    RemoteHop::Via { gateway, ifindex: 3 },
                    RemoteHop::Overlay { gateway, ifindex: 7 },
                ] {
                    let route = RemoteRoute { destination, hop, source: source.parse().ok() };
                    let answer = RouteNetlinkMessage::NewRoute(message(&route));
                    assert_eq!(remote_route(answer), Some(route));
                }
            }
        }
    }

    #[test]
    fn a_route_of_somebody_else_is_not_ours() {
        let route = RemoteRoute {
            destination: "10.1.0.0/26".parse().unwrap(),
            hop: RemoteHop::Unreachable,
            source: None,
        };
        let mut message = message(&route);
        message.header.protocol = RouteProtocol::Other(super::super::ROUTE_PROTOCOL);

        assert_eq!(remote_route(RouteNetlinkMessage::NewRoute(message)), None);
    }
}
