//! The netlink requests that margay makes: one typed function per request, each by name or by
//! index, so that no ADD or DEL walks a whole kernel table.
//!
//! Invariant: every error says what was asked of which object, and keeps the kernel's errno as
//! its source, so that callers decide by errno and never by text.

mod address;
mod ipsec;
mod link;
mod monitor;
mod neighbour;
mod netfilter;
mod overlay;
mod qdisc;
mod remote;
mod route;

use std::io;

use futures_util::{Stream, StreamExt};
use margay_failpoints::{self as failpoints, Kind};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use rustix::io::Errno;

pub use address::AddressInfo;
pub use ipsec::has_ipsec_policies;
pub use link::{LinkInfo, Peer, VethPair};
pub use monitor::Monitor;
pub use neighbour::NeighbourInfo;
pub use netfilter::{Intervals, Netfilter, RuleInfo};
pub use overlay::{NewOverlay, OverlayInfo};
pub use qdisc::{TokenBucket, TokenBucketInfo};
pub use remote::{REMOTE_ROUTE_PROTOCOL, RemoteHop, RemoteRoute};
pub use route::{NewRoute, PacketRoute, RouteInfo};

/// Number in the protocol field of every route that margay makes, so that its routes can be told
/// from those of an administrator, a routing daemon or another plugin. Not assigned to anybody in
/// `iproute2`'s `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 77;

/// A failed netlink request.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}")]
pub struct NetlinkError {
    operation: &'static str,
    object: String,
    #[source]
    source: io::Error,
}

impl NetlinkError {
    fn new(operation: &'static str, object: &str, source: impl Into<io::Error>) -> Self {
        Self { operation, object: object.to_owned(), source: source.into() }
    }

    /// Whether the kernel answered with this errno.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }

    /// Whether what was asked for does not exist (`ENODEV`, `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`).
    #[must_use]
    pub fn is_absent(&self) -> bool {
        [Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL].iter().any(|&e| self.is(e))
    }
}

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket and drives it on the current tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("open", "netlink socket", source))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The rtnetlink handle behind it, for requests that other crates make.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Sends one request that the kernel answers by an acknowledgement.
    async fn execute(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut answers = self.send(operation, object, message, NLM_F_ACK | flags)?;
        while let Some(answer) = answers.next().await {
            answer?;
        }
        Ok(())
    }

    /// Sends one request and returns the objects that the kernel answers with.
    async fn query(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut answers = self.send(operation, object, message, flags)?;
        let mut objects = Vec::new();
        while let Some(answer) = answers.next().await {
            objects.extend(answer?);
        }
        Ok(objects)
    }

    fn send(
        &self,
        operation: &'static str,
        object: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<
        impl Stream<Item = Result<Option<RouteNetlinkMessage>, NetlinkError>> + use<>,
        NetlinkError,
    > {
        let kind = match message {
            RouteNetlinkMessage::GetLink(_)
            | RouteNetlinkMessage::GetAddress(_)
            | RouteNetlinkMessage::GetRoute(_)
            | RouteNetlinkMessage::GetNeighbour(_)
            | RouteNetlinkMessage::GetQueueDiscipline(_)
            | RouteNetlinkMessage::GetTrafficFilter(_) => Kind::NetlinkQuery,
            _ => Kind::Netlink,
        };
        failpoints::before(kind, format_args!("{operation} {object}"))
            .map_err(|source| NetlinkError::new(operation, object, source))?;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let object = object.to_owned();
        let answers = self.handle.clone().request(request).map_err(|_closed| {
            NetlinkError::new(operation, &object, io::Error::from(io::ErrorKind::BrokenPipe))
        })?;
        Ok(answers.map(move |answer| match answer.payload {
            NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                Err(NetlinkError::new(operation, &object, error.to_io()))
            }
            _ => Ok(None),
        }))
    }
}
