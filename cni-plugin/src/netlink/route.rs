//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};

use super::address::family;
use super::{Netlink, NetlinkError, ROUTE_PROTOCOL};

/// A route to be made in the main table, with margay's route protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRoute {
    /// Where to.
    pub destination: IpNetwork,
    /// Over which router; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// Take the router for reachable on the link without a route that says so.
    pub onlink: bool,
    /// Over which interface.
    pub ifindex: u32,
    /// Priority (metric), the lower the better; none is the kernel's default.
    pub priority: Option<u32>,
}

/// What the kernel says of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Where to; prefix length 0 for a default route.
    pub destination: Option<IpAddr>,
    /// Length of the destination's prefix in bits.
    pub prefix_length: u8,
    /// Over which router.
    pub gateway: Option<IpAddr>,
    /// Over which interface, the first one of a multipath route; none for unreachable and blackhole
    /// routes.
    pub ifindex: Option<u32>,
    /// Protocol number of who made it.
    pub protocol: u8,
    /// Routing table.
    pub table: u32,
}

/// Where the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketRoute {
    /// The route.
    pub route: RouteInfo,
    /// To the host itself.
    pub is_local: bool,
}

impl NewRoute {
    /// A route to one address on the link.
    #[must_use]
    pub fn on_link(address: IpAddr, ifindex: u32) -> Self {
        let destination = IpNetwork::from(address);
        Self { destination, gateway: None, onlink: false, ifindex, priority: None }
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` when there is a route to this destination with the same priority.
    pub async fn add_route(&self, route: &NewRoute) -> Result<(), NetlinkError> {
        let mut message = to(route.destination);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.gateway {
            None if route.destination.is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if route.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        message.attributes.push(RouteAttribute::Oif(route.ifindex));
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        message.attributes.extend(route.priority.map(RouteAttribute::Priority));
        let object = match route.gateway {
            Some(gateway) => format!("{} via {gateway}", route.destination),
            None => format!("{} over link with index {}", route.destination, route.ifindex),
        };
        let message = RouteNetlinkMessage::NewRoute(message);
        self.execute("add route", &object, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// The route that the kernel would use for a packet to `address`, if any.
    ///
    /// # Errors
    /// Any errno but those that say that there is no route.
    pub async fn route_to(&self, address: IpAddr) -> Result<Option<RouteInfo>, NetlinkError> {
        let mut message = to(IpNetwork::from(address));
        message.header.flags = RouteFlags::FibMatch;
        let message = RouteNetlinkMessage::GetRoute(message);
        match self.query("look up route", &address.to_string(), message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(route_info)),
            Err(error) if no_route(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The route of a packet that comes to the host's stack by an interface, or begins there (`None`);
    /// no route if the kernel has none, or refuses to forward.
    ///
    /// # Errors
    /// Any errno but those that say that there is no route.
    pub async fn route_of(
        &self,
        source: IpAddr,
        destination: IpAddr,
        came_by: Option<u32>,
    ) -> Result<Option<PacketRoute>, NetlinkError> {
        let mut message = to(IpNetwork::from(destination));
        message.header.flags = RouteFlags::FibMatch;
        if let Some(ifindex) = came_by {
            message.header.source_prefix_length = IpNetwork::from(source).prefix();
            message.attributes.push(RouteAttribute::Source(source.into()));
            message.attributes.push(RouteAttribute::Iif(ifindex));
        }
        let message = RouteNetlinkMessage::GetRoute(message);
        let object = format!("from {source} to {destination}");
        match self.query("look up route", &object, message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(packet_route)),
            Err(error) if no_route(&error) || error.is(rustix::io::Errno::XDEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The routes of both families over one interface. The kernel has no request for one
    /// interface's routes, so this dumps those of the namespace: for CHECK, never for an ADD
    /// or a DEL.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn routes(&self, ifindex: u32) -> Result<Vec<RouteInfo>, NetlinkError> {
        let routes = self.all_routes().await?.into_iter();
        Ok(routes.filter(|info| info.ifindex == Some(ifindex)).collect())
    }

    /// Every route of both families. For inspection, never for an ADD or a DEL.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn all_routes(&self) -> Result<Vec<RouteInfo>, NetlinkError> {
        let message = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let answers = self.query("list", "routes", message, NLM_F_DUMP).await?;
        Ok(answers.into_iter().filter_map(route_info).collect())
    }
}

pub(super) fn to(destination: IpNetwork) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.ip());
    message.header.destination_prefix_length = destination.prefix();
    if destination.prefix() != 0 {
        message.attributes.push(RouteAttribute::Destination(destination.ip().into()));
    }
    message
}

/// `EOPNOTSUPP` is the answer for a family that the kernel does not have (`ipv6.disable=1`).
pub(super) fn no_route(error: &NetlinkError) -> bool {
    use rustix::io::Errno;
    error.is_absent()
        || [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL, Errno::OPNOTSUPP]
            .iter()
            .any(|&errno| error.is(errno))
}

/// `None` of what leads nowhere (`unreachable`, `blackhole`).
fn packet_route(message: RouteNetlinkMessage) -> Option<PacketRoute> {
    let RouteNetlinkMessage::NewRoute(route) = &message else { return None };
    let is_local = match route.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => false,
        _ => return None,
    };
    Some(PacketRoute { route: route_info(message)?, is_local })
}

fn route_info(message: RouteNetlinkMessage) -> Option<RouteInfo> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let mut info = RouteInfo {
        destination: None,
        prefix_length: message.header.destination_prefix_length,
        gateway: None,
        ifindex: None,
        protocol: message.header.protocol.into(),
        table: u32::from(message.header.table),
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => info.destination = ip(&address),
            RouteAttribute::Gateway(address) => info.gateway = ip(&address),
            RouteAttribute::Oif(ifindex) => info.ifindex = Some(ifindex),
            RouteAttribute::MultiPath(hops) => {
                info.ifindex = hops.first().map(|hop| hop.interface_index);
            }
            RouteAttribute::Table(table) => info.table = table,
            _ => {}
        }
    }
    Some(info)
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
