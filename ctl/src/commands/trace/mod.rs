//! `margayctl trace`: what would become of a packet.
//!
//! The packet is made ([`packet`]), and taken from hook to hook ([`walk`]) in a rehearsal: the programs'
//! own code on the pinned maps, but with flows and counters of its own. Invariant: nothing that is
//! live changes, neither a counter nor a flow.

mod frame;
mod packet;
mod parties;
mod report;
mod walk;
mod words;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use margay::netlink::Netlink;
use margay_datapath::Rehearsal;

pub(crate) use packet::{Message, PacketError, Protocol};

use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Format};
use frame::Frame;
use packet::{TcpFlags, Wanted, gateway};
use parties::{Origin, Parties, Party};
use walk::Walk;

/// `trace`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who sends: a pod (namespace/name), a container ID or an address
    #[arg(value_name = "SRC")]
    source: String,
    /// Who is to receive: a pod, a container ID or an address; without one, the gateway by ARP or NDP
    #[arg(value_name = "DST")]
    destination: Option<String>,
    /// What the packet carries: tcp, udp, sctp, icmp, arp, ndp or the number of a protocol [default: tcp, or arp without a DST]
    #[arg(long, value_parser = Protocol::parse)]
    proto: Option<Protocol>,
    /// Which message of ICMP, ARP or NDP [default: what asks]
    #[arg(long, value_enum)]
    message: Option<Message>,
    /// Destination port
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    dport: u16,
    /// Source port; of ICMP echo, the identifier
    #[arg(long, value_name = "PORT", default_value_t = 40_000)]
    sport: u16,
    /// TCP: the first packet of a connection, which is the default
    #[arg(long, group = "flags")]
    syn: bool,
    /// TCP: a packet of a connection's middle
    #[arg(long, group = "flags")]
    established: bool,
    /// TCP: a packet of a connection's end
    #[arg(long, group = "flags")]
    fin: bool,
    /// TCP: a connection's abrupt end
    #[arg(long, group = "flags")]
    rst: bool,
    /// Length in bytes, from the IP header on
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(20..=65_000))]
    length: Option<u16>,
    /// TTL or hop limit
    #[arg(long, value_name = "HOPS")]
    ttl: Option<u8>,
    /// The first fragment of a larger packet
    #[arg(long)]
    fragment: bool,
    /// With IP options, or an extension header of IPv6
    #[arg(long)]
    ip_options: bool,
    /// Between two pods, over IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Source address in the packet, if another than the sender's
    #[arg(long, value_name = "ADDRESS")]
    claim: Option<IpAddr>,
    /// Where the packet comes from [default: by SRC]
    #[arg(long, value_enum)]
    from: Option<From>,
    /// This very frame, from its Ethernet header on: a file of hexadecimal digits, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "destination", "proto", "message", "flags", "length", "ttl", "fragment", "ip_options", "claim",
    ])]
    frame: Option<PathBuf>,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// A pod of this node
    Pod,
    /// This node itself
    Host,
    /// Another node of the cluster
    Node,
    /// Another node, through the overlay, whatever is known of its pods
    Overlay,
    /// Anywhere outside
    Outside,
}

pub(crate) async fn run(arguments: &Arguments, node: &Node, format: Format) -> Result<(), Failure> {
    let datapath = node.datapaths()?.remove(0);
    let netlink = Netlink::open()?;
    let parties = Parties::new(node, &datapath, &netlink);
    let source = parties.party(&arguments.source)?;
    let destination = arguments.destination.as_ref().map(|name| parties.party(name)).transpose()?;

    let source_address = sender_address(arguments, &source, destination.as_ref())?;
    let origin = parties.origin(source_address, arguments.from).await?;
    let frame = match &arguments.frame {
        Some(path) => read_frame(path)?,
        None => wanted(arguments, source_address, destination.as_ref(), &origin)?.frame()?,
    };

    let root = node.settings()?.paths.bpffs_root;
    let rehearsal = Rehearsal::new(&root)?;
    let walk = Walk { rehearsal, datapath: &datapath, netlink: &netlink, parties: &parties, root };
    output::show(&walk.trace(origin, frame).await?, format)
}

/// Of the sender's addresses, the one of the family that is meant.
fn sender_address(
    arguments: &Arguments,
    source: &Party,
    destination: Option<&Party>,
) -> Result<IpAddr, PacketError> {
    let only = |party: &Party| match party.addresses.as_slice() {
        [one, rest @ ..] if rest.iter().all(|other| other.is_ipv4() == one.is_ipv4()) => {
            Some(one.is_ipv4())
        }
        _ => None,
    };
    let is_ipv4 = match arguments.proto {
        Some(Protocol::Arp) => true,
        Some(Protocol::Ndp) => false,
        _ => only(source).or_else(|| destination.and_then(only)).unwrap_or(!arguments.ipv6),
    };
    source.address(is_ipv4)
}

fn wanted(
    arguments: &Arguments,
    sender: IpAddr,
    destination: Option<&Party>,
    origin: &Origin,
) -> Result<Wanted, PacketError> {
    let is_ipv4 = sender.is_ipv4();
    let protocol = arguments.proto.unwrap_or(match (destination, is_ipv4) {
        (Some(_), _) => Protocol::Tcp,
        (None, true) => Protocol::Arp,
        (None, false) => Protocol::Ndp,
    });
    let destination = match destination {
        Some(party) => party.address(is_ipv4)?,
        None => gateway(is_ipv4),
    };
    let flags = match arguments {
        Arguments { established: true, .. } => TcpFlags::Ack,
        Arguments { fin: true, .. } => TcpFlags::Fin,
        Arguments { rst: true, .. } => TcpFlags::Rst,
        _ => TcpFlags::Syn,
    };
    Ok(Wanted {
        source: arguments.claim.unwrap_or(sender),
        destination,
        protocol,
        message: arguments.message,
        source_port: arguments.sport,
        destination_port: arguments.dport,
        flags,
        length: arguments.length.map(usize::from),
        hop_limit: arguments.ttl,
        is_fragment: arguments.fragment,
        has_options: arguments.ip_options,
        macs: origin.macs(),
    })
}

fn read_frame(path: &Path) -> Result<Vec<u8>, PacketError> {
    let name = || path.display().to_string();
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let text = text.map_err(|source| PacketError::Frame { path: name(), source })?;
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|character| !character.is_whitespace())
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect();
    let not_a_frame = || PacketError::NotAFrame { path: name() };
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(not_a_frame)?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    match Frame::read(&bytes).ok_or_else(not_a_frame)?.ethertype {
        0x8100 | 0x88a8 => Err(PacketError::Tagged),
        _ => Ok(bytes),
    }
}
