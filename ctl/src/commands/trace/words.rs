//! What a counter means.

use margay_abi::Counter;

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
