//! Echo requests between pods, on a host that drops what its conntrack calls invalid, such as an echo
//! reply whose request it has not seen.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use margay_abi::Counter;
use margay_tests::packet;
use margay_tests::pod::address;
use margay_tests::traffic::{PATIENCE, SILENCE, assert_ping, receive};
use margay_tests::{Node, Pod};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto};

#[test]
fn ping_between_pods_never_meets_the_stack() {
    on_both_families(|pods| {
        pods.node.count_forwarded_packets();
        let (pinger, before) = (Pinger::new(&pods.a, pods.ip_b), pods.direct_packets());

        for _ in 0..3 {
            assert_eq!(pinger.ping(pods.ip_b).expect("a reply"), pods.ip_b);
        }

        assert_eq!(pods.direct_packets() - before, 6);
        assert_eq!(pods.node.forwarded_packets(), 0);
    });
}

#[test]
fn pings_are_answered_while_flows_are_forgotten_between_them() {
    on_both_families(|pods| {
        let pinger = Pinger::new(&pods.a, pods.ip_b);
        for _ in 0..5 {
            pods.forget_flows();
            assert_eq!(pinger.ping(pods.ip_b).expect("a reply"), pods.ip_b);
        }
        assert_eq!(pods.node.invalid_packets(), 0);
    });
}

#[test]
fn flow_that_is_forgotten_in_the_middle_of_a_ping_costs_one_reply_at_most() {
    on_both_families(|pods| {
        let (pinger, other) = (Pinger::new(&pods.a, pods.ip_b), pods.b_answering_by_hand());

        pinger.request(pods.ip_b);
        other.receive(pinger.request).expect("the request");
        pods.forget_flows();
        other.send(pinger.reply, pods.ip_a);
        pinger.raw.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(pinger.receive(pinger.reply).is_err(), "conntrack knows the request");
        assert_eq!(pods.node.invalid_packets(), 1);

        pinger.raw.set_read_timeout(Some(PATIENCE)).unwrap();
        pinger.request(pods.ip_b);
        other.receive(pinger.request).expect("the next request");
        other.send(pinger.reply, pods.ip_a);
        assert_eq!(pinger.receive(pinger.reply).expect("its reply"), pods.ip_b);
    });
}

#[test]
fn one_identifier_is_used_for_a_pod_and_for_the_address_that_leads_to_it() {
    on_both_families(|pods| {
        let service = pods.address_that_leads_to_b();
        let pinger = Pinger::new(&pods.a, pods.ip_b);

        for turn in 0..12 {
            // Every order of the two, with the table lost before and not.
            let target = if turn % 2 == 0 { pods.ip_b } else { service };
            if turn % 3 == 0 {
                pods.forget_flows();
            }
            let answerer = pinger.ping(target).unwrap_or_else(|error| {
                panic!("turn {turn}, {target}: {error}");
            });
            assert_eq!(answerer, target, "turn {turn}");
        }
    });
}

struct Pods<'node> {
    node: &'node Node,
    a: Pod<'node>,
    b: Pod<'node>,
    ip_a: IpAddr,
    ip_b: IpAddr,
}

fn on_both_families(test: impl Fn(&Pods<'_>)) {
    for ipv4 in [true, false] {
        let Some(node) = Node::new() else { return };
        let network = node.network();
        let (a, b) = (node.sandbox("a"), node.sandbox("b"));
        let [ip_a, ip_b] = [&a, &b].map(|pod| address(&pod.add(&network), ipv4));
        // What an interface sends before the kernel has come to its carrier is dropped, and a busy one
        // takes its time. No test here sends anything twice.
        assert_ping(&a, ip_b);
        node.drop_invalid();
        let pods = Pods { node: &node, a, b, ip_a, ip_b };
        pods.forget_flows();
        test(&pods);
    }
}

impl Pods<'_> {
    fn forget_flows(&self) {
        self.node.datapath().flows().clear().unwrap();
    }

    fn direct_packets(&self) -> u64 {
        let counter = if self.ip_b.is_ipv4() { Counter::DirectV4 } else { Counter::DirectV6 };
        self.node.packets(counter)
    }

    /// Pod B, whose kernel answers no request.
    fn b_answering_by_hand(&self) -> Pinger {
        let sysctl = if self.ip_b.is_ipv4() {
            "ipv4/icmp_echo_ignore_all"
        } else {
            "ipv6/icmp/echo_ignore_all"
        };
        self.b.enter(|| fs::write(format!("/proc/sys/net/{sysctl}"), "1")).unwrap();
        Pinger::new(&self.b, self.ip_a)
    }

    /// Of no interface: the host's conntrack puts pod B's in its place, whatever the protocol.
    fn address_that_leads_to_b(&self) -> IpAddr {
        let (family, service) =
            if self.ip_b.is_ipv4() { ("ip", "10.96.0.10") } else { ("ip6", "fd00:96::10") };
        for line in [
            format!("add table {family} led"),
            format!(
                "add chain {family} led prerouting {{ type nat hook prerouting priority dstnat ; }}"
            ),
            format!(
                "add rule {family} led prerouting {family} daddr {service} dnat to {}",
                self.ip_b
            ),
        ] {
            self.node.run(&["nft", &line]);
        }
        service.parse().unwrap()
    }
}

/// A raw ICMP socket that sends everything with one identifier.
struct Pinger {
    raw: UdpSocket,
    request: u8,
    reply: u8,
}

impl Pinger {
    const IDENTIFIER: u16 = 7;

    /// To ping addresses of the same family as `target`.
    fn new(pod: &Pod<'_>, target: IpAddr) -> Self {
        let (family, protocol, [request, reply]) = match target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, [8, 0]),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, [128, 129]),
        };
        let socket = pod.enter(|| {
            net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))
        });
        let raw = UdpSocket::from(socket.expect("a raw socket"));
        raw.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { raw, request, reply }
    }

    /// Who has answered a request to `target`.
    fn ping(&self, target: IpAddr) -> io::Result<IpAddr> {
        self.request(target);
        self.receive(self.reply)
    }

    fn request(&self, target: IpAddr) {
        self.send(self.request, target);
    }

    fn send(&self, icmp_type: u8, target: IpAddr) {
        let mut message = packet::echo(icmp_type, Self::IDENTIFIER);
        // For IPv6 the kernel does it.
        if target.is_ipv4() {
            let checksum = packet::checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        self.raw.send_to(&message, SocketAddr::new(target, 0)).expect("send");
    }

    /// Who has sent the next message of this type with the identifier.
    fn receive(&self, icmp_type: u8) -> io::Result<IpAddr> {
        let mut buffer = [0; 256];
        loop {
            let (len, from) = receive(&self.raw, &mut buffer)?;
            let ip_header_len = if from.is_ipv4() { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
            let message = &buffer[ip_header_len..len];
            if message[0] == icmp_type && message[4..6] == Self::IDENTIFIER.to_be_bytes() {
                return Ok(from.ip());
            }
        }
    }
}
