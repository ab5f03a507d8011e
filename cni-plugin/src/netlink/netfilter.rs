//! What a table of nftables holds, asked over nfnetlink: by the table's name and by the set's, and
//! without a process. Nothing is changed here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use margay_failpoints::{self as failpoints, Kind};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ExpressionAttribute, Expressions, ListAttribute, Lookup, NfTablesMessage,
    RuleAttribute, RuleMessage, SetElementAttribute, SetElementFlags, SetElementList,
    SetElementMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::SocketAddr;
use netlink_proto::sys::protocols::NETLINK_NETFILTER;

use super::NetlinkError;

/// A netfilter socket in the network namespace that the calling thread was in when it was opened.
#[derive(Clone, Debug)]
pub struct Netfilter {
    handle: ConnectionHandle<NetfilterMessage>,
}

/// What there is to say of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleInfo {
    /// The chain that it is in.
    pub chain: String,
    /// The set that it looks a packet up in.
    pub set: Option<String>,
}

/// Where the intervals of a set begin and end, each end being the first address behind it. Intervals
/// that touch are one, so that two of these are the same if they hold the same addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    edges: BTreeSet<(IpAddr, Edge)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Begin,
    End,
}

impl Intervals {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    fn add_edge(&mut self, address: IpAddr, edge: Edge) {
        let opposite = match edge {
            Edge::Begin => Edge::End,
            Edge::End => Edge::Begin,
        };
        if !self.edges.remove(&(address, opposite)) {
            self.edges.insert((address, edge));
        }
    }
}

/// Of prefixes that do not overlap.
impl FromIterator<IpNetwork> for Intervals {
    fn from_iter<T: IntoIterator<Item = IpNetwork>>(prefixes: T) -> Self {
        let mut intervals = Self::default();
        for prefix in prefixes {
            intervals.add_edge(prefix.network(), Edge::Begin);
            let behind = match prefix.broadcast() {
                IpAddr::V4(last) => {
                    last.to_bits().checked_add(1).map(Ipv4Addr::from).map(IpAddr::V4)
                }
                IpAddr::V6(last) => {
                    last.to_bits().checked_add(1).map(Ipv6Addr::from).map(IpAddr::V6)
                }
            };
            if let Some(behind) = behind {
                intervals.add_edge(behind, Edge::End);
            }
        }
        intervals
    }
}

impl Netfilter {
    /// Opens a socket and drives it on the current tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = netlink_proto::new_connection(NETLINK_NETFILTER)
            .map_err(|source| NetlinkError::new("open", "netfilter socket", source))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The rules of a table of the family `inet`, chain by chain in their order; none where there
    /// is no such table.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn rules(&self, table: &str) -> Result<Vec<RuleInfo>, NetlinkError> {
        let attributes = vec![RuleAttribute::Table(table.to_owned())];
        let message = NfTablesMessage::GetRule(RuleMessage { attributes });
        match self.dump("list rules of", &format!("table inet {table}"), message).await {
            Ok(answers) => Ok(answers.into_iter().filter_map(rule_info).collect()),
            Err(error) if error.is_absent() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The intervals of a set in a table of the family `inet`; `None` where there is no such set.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub async fn intervals(
        &self,
        table: &str,
        set: &str,
    ) -> Result<Option<Intervals>, NetlinkError> {
        let attributes =
            vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
        let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let object = format!("{set} of table inet {table}");
        match self.dump("list elements of set", &object, message).await {
            Ok(answers) => Ok(Some(intervals(answers))),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn dump(
        &self,
        operation: &'static str,
        object: &str,
        message: NfTablesMessage,
    ) -> Result<Vec<NfTablesMessage>, NetlinkError> {
        failpoints::before(Kind::NetlinkQuery, format_args!("{operation} {object}"))
            .map_err(|source| NetlinkError::new(operation, object, source))?;
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let mut request = NetlinkMessage::from(NetfilterMessage::new(header, message));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers =
            self.handle.request(request, SocketAddr::new(0, 0)).map_err(|_closed| {
                let source = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
                NetlinkError::new(operation, object, source)
            })?;
        let mut objects = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => match message.inner {
                    NetfilterMessageInner::NfTables(message) => objects.push(message),
                    _ => continue,
                },
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::new(operation, object, error.to_io()));
                }
                _ => {}
            }
        }
        Ok(objects)
    }
}

fn rule_info(message: NfTablesMessage) -> Option<RuleInfo> {
    let NfTablesMessage::NewRule(message) = message else { return None };
    let mut info = RuleInfo { chain: String::new(), set: None };
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Chain(chain) => info.chain = chain,
            RuleAttribute::Expressions(expressions) => {
                info.set = expressions.into_iter().find_map(set_of_lookup);
            }
            _ => {}
        }
    }
    Some(info)
}

fn set_of_lookup(expression: ListAttribute<ExpressionAttribute>) -> Option<String> {
    let ListAttribute::Element(attributes) = expression else { return None };
    attributes.into_iter().find_map(|attribute| {
        let ExpressionAttribute::Data(Expressions::Lookup(lookup)) = attribute else { return None };
        lookup.into_iter().find_map(|lookup| match lookup {
            Lookup::Set(name) => Some(name),
            _ => None,
        })
    })
}

fn intervals(answers: Vec<NfTablesMessage>) -> Intervals {
    let mut intervals = Intervals::default();
    for answer in answers {
        let NfTablesMessage::NewSetElement(message) = answer else { continue };
        for attribute in message.attributes {
            let SetElementList::Elements(elements) = attribute else { continue };
            for element in elements {
                let ListAttribute::Element(attributes) = element else { continue };
                match edge(&attributes) {
                    // The kernel's own mark of where the first interval can begin.
                    Some((address, Edge::End)) if address.is_unspecified() => {}
                    Some((address, edge)) => intervals.add_edge(address, edge),
                    None => {}
                }
            }
        }
    }
    intervals
}

fn edge(attributes: &[SetElementAttribute]) -> Option<(IpAddr, Edge)> {
    let mut address = None;
    let mut edge = Edge::Begin;
    for attribute in attributes {
        match attribute {
            SetElementAttribute::Key(DataAttribute::Value(bytes)) => address = ip(bytes),
            SetElementAttribute::Flags(flags) if flags.contains(SetElementFlags::IntervalEnd) => {
                edge = Edge::End;
            }
            _ => {}
        }
    }
    address.map(|address| (address, edge))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefixes: &[&str]) -> Intervals {
        prefixes.iter().map(|prefix| prefix.parse::<IpNetwork>().unwrap()).collect()
    }

    #[test]
    fn intervals_are_equal_where_they_hold_the_same_addresses() {
        assert_eq!(of(&["10.1.0.0/24", "10.1.1.0/24"]), of(&["10.1.0.0/23"]));
        assert_eq!(of(&["10.1.1.0/24", "10.1.0.0/24"]), of(&["10.1.0.0/23"]));
        assert_ne!(of(&["10.1.0.0/24", "10.1.2.0/24"]), of(&["10.1.0.0/23"]));
        assert_ne!(of(&["10.1.0.0/24"]), of(&["10.1.0.0/25"]));
        assert_ne!(of(&["fd00::/64"]), of(&["fd00::/65"]));
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn an_interval_to_the_end_of_the_addresses_has_no_end() {
        assert_eq!(of(&["255.0.0.0/8"]).edges.len(), 1);
        assert_eq!(of(&["ff00::/8"]).edges.len(), 1);
    }
}
