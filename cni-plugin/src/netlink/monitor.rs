//! What the kernel says by itself when somebody changes links, addresses or routes.

use std::net::IpAddr;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::MulticastGroup;

use super::remote::REMOTE_ROUTE_PROTOCOL;
use super::{Netlink, NetlinkError};
use crate::naming;

/// Changes that may concern the routes to other nodes.
pub struct Monitor {
    changes: BoxStream<'static, ()>,
}

impl Netlink {
    /// Listens from now on, in the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn monitor() -> Result<Monitor, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| NetlinkError::new("open", "netlink monitor", source))?;
        tokio::spawn(connection);
        let changes = messages.filter_map(move |(message, _)| {
            // The connection ends with the last handle.
            let _open = &handle;
            let concerns = match &message.payload {
                NetlinkPayload::InnerMessage(message) => concerns_remote_routes(message),
                // The kernel had more to say than there was room for.
                _ => true,
            };
            async move { concerns.then_some(()) }
        });
        Ok(Monitor { changes: changes.boxed() })
    }
}

impl Monitor {
    /// Waits for the next change; for ever, if the socket has failed.
    pub async fn changed(&mut self) {
        if self.changes.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// What happens to pods' links and routes, with every ADD and DEL, does not.
fn concerns_remote_routes(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            link.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::IfName(name) => !naming::is_of_a_pod(name),
                _ => false,
            })
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            address.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(_)) => true,
                AddressAttribute::Address(IpAddr::V6(ip)) => !ip.is_unicast_link_local(),
                _ => false,
            })
        }
        RouteNetlinkMessage::DelRoute(route) => {
            u8::from(route.header.protocol) == REMOTE_ROUTE_PROTOCOL
        }
        _ => false,
    }
}
