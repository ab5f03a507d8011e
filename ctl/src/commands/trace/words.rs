//! What a counter means, and what packets and flows are called.

use std::net::{IpAddr, SocketAddr};

use margay_abi::Counter;

use super::frame::{Flow, Frame};
use super::report::Ending;

/// What becomes of a packet that is counted so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Into a pod, past the host's stack.
    Deliver,
    /// Turned into its own answer.
    Answer,
    /// To another node, past the host's stack.
    Send,
    /// To the host's stack.
    Stack,
    /// On its way as it was, past a program that only learns.
    Pass,
    /// Nowhere.
    Drop,
}

/// The verdict, and why.
pub(super) fn meaning(counter: Counter) -> (Verdict, &'static str) {
    use Verdict::{Answer, Deliver, Drop, Pass, Send, Stack};
    match counter {
        Counter::DirectV4 | Counter::DirectV6 | Counter::FromNodeV4 | Counter::FromNodeV6 => {
            (Deliver, "delivered straight into the receiver, past the host's stack")
        }
        Counter::ArpAnswered => (Answer, "the ARP request is answered in place"),
        Counter::NdpAnswered => (Answer, "the neighbour solicitation is answered in place"),
        Counter::ToNodeV4 | Counter::ToNodeV6 => {
            (Send, "sent straight to the receiver's node, past the host's stack")
        }
        Counter::StackNotLocal => (Stack, "the destination is no pod that the programs know"),
        Counter::StackFlow => (
            Stack,
            "the flow is the stack's, or nothing is known of it, or the bandwidth of a pod is limited",
        ),
        Counter::StackUnsupported => (
            Stack,
            "a fragment, IP options, an extension header, a protocol without flows, or another MAC \
             address than the host veth's",
        ),
        Counter::StackIcmpError => {
            (Stack, "the last hop, or larger than the way's MTU: the stack sends the ICMP error")
        }
        Counter::StackControl => (Stack, "traffic that stays on the link: ARP, NDP, MLD"),
        Counter::StackMulticast => (Stack, "for a group"),
        Counter::ToPod => (Pass, "passed to the pod"),
        Counter::DropSpoofedSource => {
            (Drop, "the source address or the MAC address is not this interface's pod's")
        }
        Counter::DropArpIgnored => {
            (Drop, "an ARP request that is not to be answered: a probe, or not for the gateway")
        }
        Counter::DropMalformed => (Drop, "headers that contradict each other or the length"),
        Counter::DropRouterMessage => (Drop, "what only a router may say to the host"),
        Counter::DropEncapsulated => (Drop, "for the overlay's port, where only nodes may send"),
    }
}

pub(super) fn in_words(ending: Ending) -> &'static str {
    match ending {
        Ending::Host => "For the host itself, by its own stack.",
        _ => "Refused by the host's stack.",
    }
}

/// A packet in a few words.
pub(super) fn summary(bytes: &[u8]) -> String {
    let Some(frame) = Frame::read(bytes) else { return "a frame".to_owned() };
    if let Some([sender, target]) = frame.arp {
        return format!("ARP from {sender} about {target}");
    }
    let Some(ip) = frame.ip else { return format!("a frame of type {:#06x}", frame.ethertype) };
    let protocol = protocol_name(ip.protocol);
    let ends = match ip.ports {
        Some([source_port, destination_port]) if !matches!(ip.protocol, 1 | 58) => {
            format!("{} to {}", end(ip.source, source_port), end(ip.destination, destination_port))
        }
        _ => format!("{} to {}", ip.source, ip.destination),
    };
    match ip.tcp_flags {
        Some(flags) => format!("{protocol} {} from {ends}", tcp_flags(flags)),
        None => format!("{protocol} from {ends}"),
    }
}

/// A flow as a key of its map.
pub(super) fn describe(flow: &Flow) -> String {
    let (source, destination) = (flow.source, flow.destination);
    let protocol = protocol_name(flow.protocol).to_lowercase();
    format!("{protocol} {} {}", end(source.0, source.1), end(destination.0, destination.1))
}

fn end(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        number => format!("protocol {number}"),
    }
}

pub(super) fn tcp_flags(flags: u8) -> String {
    let names = [(0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"), (0x10, "ACK")];
    let set: Vec<_> =
        names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    set.join("+")
}
