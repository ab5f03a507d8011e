//! What pods send, on a node by itself.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;

use margay_abi::{Counter, FlowKeyV4, FlowKeyV6, flow_verdict};
use margay_tests::Node;
use margay_tests::cni::with_bandwidth;
use margay_tests::ctl::Ctl;
use margay_tests::node::{WORLD_V4, WORLD_V6, node_address};
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet};
use margay_tests::pod::address;
use serde_json::json;

use super::{Row, ask, assert_counted, counter, frame, mute, mute_node, names, row};

const SPOOFED: &str = "source address not this interface's pod (`pods_*`, interface index, MAC)";
const ARP: &str = "ARP request for 169.254.1.1 (for any address with `answer_any_arp`)";
const OTHER_ARP: &str = "ARP probe, gratuitous ARP, request for another address";
const NDP: &str = "neighbour solicitation for `fe80::ecee:eeff:feee:eeee`";
const CONTROL: &str = "ARP reply; other neighbour discovery, duplicate address detection, MLD";
const ROUTER: &str = "router advertisement, IPv6 redirect";
const GROUP: &str = "multicast, broadcast";
const ELSEWHERE: &str = "to an address that is no local pod's";
const ODD: &str = "fragment, IPv4 options, IPv6 extension header, other protocol or EtherType";
const LAST_HOP: &str = "TTL or hop limit at its end, or larger than the receiver's MTU";
const SHAPED: &str = "to a local pod, and the bandwidth of one of the two is limited";
const STACKS: &str = "to a local pod, the flow is the stack's or nothing is known of it";
const DIRECT: &str = "to a local pod, the flow is direct";
const MALFORMED: &str = "headers that contradict each other";

pub(super) const ROWS: &[Row] = &[
    row(SPOOFED, Counter::DropSpoofedSource, "{a} {b} --claim {stranger}"),
    row(SPOOFED, Counter::DropSpoofedSource, "{a} {b} --claim {b} --established"),
    row(SPOOFED, Counter::DropSpoofedSource, "{a} --proto arp --claim {b}").over_ipv4(),
    row(ARP, Counter::ArpAnswered, "{a}").over_ipv4(),
    row(ARP, Counter::ArpAnswered, "{any} {world} --proto arp").over_ipv4(),
    row(OTHER_ARP, Counter::DropArpIgnored, "{a} --claim 0.0.0.0").over_ipv4(),
    row(OTHER_ARP, Counter::DropArpIgnored, "{a} {a} --proto arp").over_ipv4(),
    row(OTHER_ARP, Counter::DropArpIgnored, "{a} {b} --proto arp").over_ipv4(),
    row(NDP, Counter::NdpAnswered, "{a}").over_ipv6(),
    row(NDP, Counter::NdpAnswered, "{any} {world} --proto ndp").over_ipv6(),
    row(CONTROL, Counter::StackControl, "{a} --proto arp --message reply").over_ipv4(),
    row(CONTROL, Counter::StackControl, "{a} {b} --proto ndp").over_ipv6(),
    row(CONTROL, Counter::StackControl, "{a} --proto ndp --message advertisement").over_ipv6(),
    row(CONTROL, Counter::StackControl, "{a} --proto ndp --message router-solicitation")
        .over_ipv6(),
    row(ROUTER, Counter::DropRouterMessage, "{a} --proto ndp --message router-advertisement")
        .over_ipv6(),
    row(ROUTER, Counter::DropRouterMessage, "{a} --proto ndp --message redirect").over_ipv6(),
    row(GROUP, Counter::StackMulticast, "{a} {group} --proto udp"),
    row(GROUP, Counter::StackMulticast, "{a} 255.255.255.255 --proto udp").over_ipv4(),
    row(ELSEWHERE, Counter::StackNotLocal, "{a} {world}"),
    row(ELSEWHERE, Counter::StackNotLocal, "{a} {node} --proto udp --dport 53"),
    row(ELSEWHERE, Counter::StackNotLocal, "{a} {stranger} --proto icmp"),
    row(ELSEWHERE, Counter::StackNotLocal, "{a} {a} --established"),
    row(ODD, Counter::StackUnsupported, "{a} {b} --proto udp --fragment"),
    row(ODD, Counter::StackUnsupported, "{a} {b} --ip-options"),
    row(ODD, Counter::StackUnsupported, "{a} {b} --proto 47"),
    row(ODD, Counter::StackUnsupported, "{a} --frame {ethertype}").over_ipv4(),
    row(LAST_HOP, Counter::StackIcmpError, "{a} {b} --ttl 1"),
    row(LAST_HOP, Counter::StackIcmpError, "{a} {small} --length 1450"),
    row(SHAPED, Counter::StackFlow, "{a} {shaped}"),
    row(SHAPED, Counter::StackFlow, "{shaped} {a}"),
    row(STACKS, Counter::StackFlow, "{a} {b} --proto udp --dport 53"),
    row(STACKS, Counter::StackFlow, "{a} {b} --established"),
    row(STACKS, Counter::StackFlow, "{a} {b} --fin"),
    row(STACKS, Counter::StackFlow, "{a} {b} --rst"),
    row(STACKS, Counter::StackFlow, "{a} {b} --proto sctp"),
    row(STACKS, Counter::StackFlow, "{a} {b} --syn").of_a_flow(flow_verdict::VIA_STACK),
    row(DIRECT, Counter::DirectV4, "{a} {b}").or_over_ipv6(Counter::DirectV6),
    row(DIRECT, Counter::DirectV4, "{a} {b} --established --length 1400")
        .or_over_ipv6(Counter::DirectV6)
        .of_a_flow(flow_verdict::DIRECT),
    row(DIRECT, Counter::DirectV4, "{a} {b} --fin")
        .or_over_ipv6(Counter::DirectV6)
        .of_a_flow(flow_verdict::DIRECT),
    row(MALFORMED, Counter::DropMalformed, "{a} --frame {malformed}"),
];

#[test]
fn what_pods_send_becomes_what_trace_says() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let with = |key: &str, value| {
        let mut network = network.clone();
        network[key] = value;
        network
    };
    let pods = [
        ("a", network.clone()),
        ("b", network.clone()),
        ("small", with("mtu", json!(1400))),
        ("any", with("answer_any_arp", json!(true))),
        ("shaped", with_bandwidth(&network, 100_000_000, 100_000_000)),
    ];
    let pods = pods.map(|(name, network)| {
        let pod = node.sandbox(name);
        let result = pod.add(&network);
        mute(&pod);
        (name, pod, result)
    });
    mute_node();
    let datapath = node.datapath();
    for is_ipv4 in [true, false] {
        let of = |at: usize| address(&pods[at].2, is_ipv4);
        let [world, stranger, group] = if is_ipv4 {
            [WORLD_V4, "10.244.0.200", "224.0.0.5"]
        } else {
            [WORLD_V6, "fd00:10:244::fff0", "ff02::5"]
        }
        .map(|text| text.parse().expect("address"));
        let mut names = names([
            ("a", of(0)),
            ("b", of(1)),
            ("small", of(2)),
            ("any", of(3)),
            ("shaped", of(4)),
            ("world", world),
            ("stranger", stranger),
            ("group", group),
            ("node", node_address(is_ipv4)),
        ]);
        for (name, bytes) in frames(of(0), of(1)) {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(node.path(name), digits).expect("write a frame");
            names.insert(name, node.path(name).display().to_string());
        }
        for (row, port) in ROWS.iter().zip(41_000..) {
            let Some(expected) = row.counter(is_ipv4) else { continue };
            if let Some(verdict) = row.flow {
                know(&datapath, (of(0), port), (of(1), 80), verdict);
            }
            let arguments = row.arguments(&names, port);
            let answer = ask(&ctl, &datapath, &arguments);
            let steps = answer["steps"].as_array().expect("steps");
            assert_eq!(counter(&steps[0]), Some(expected), "{arguments:?}: {answer:#}");

            let before = datapath.stats().expect("stats");
            let sender =
                pods.iter().find(|(name, ..)| row.question.starts_with(&format!("{{{name}}}")));
            sender.expect("a pod").1.send_frame("eth0", &frame(&answer));
            let all: HashSet<_> = steps.iter().filter_map(counter).collect();
            assert_counted(&datapath, &before, &all, &answer);
        }
    }
}

#[test]
fn a_pod_goes_by_its_name_and_by_its_container() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let [a, b] = ["a", "b"].map(|name| node.sandbox(name));
    let named = |pod: &margay_tests::Pod<'_>, name: &str| {
        let arguments =
            format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={name}");
        pod.invocation("ADD", &network).env("CNI_ARGS", &arguments).execute().success()
    };
    let (of_a, of_b) = (named(&a, "web"), named(&b, "db"));

    for is_ipv4 in [true, false] {
        let (ip_a, ip_b) =
            (address(&of_a, is_ipv4).to_string(), address(&of_b, is_ipv4).to_string());
        let by_address = ctl.json(&["trace", &ip_a, &ip_b]);
        let family: &[&str] = if is_ipv4 { &[] } else { &["-6"] };
        for ends in [["shop/web", "shop/db"], ["a", "b"], ["shop/web", &ip_b]] {
            assert_eq!(ctl.json(&[&["trace"], &ends[..], family].concat()), by_address);
        }
        let text = ctl.text(&[&["trace", "shop/web", "shop/db"], family].concat());
        for words in [&*ip_a, &ip_b, "shop/web", "direct_v", "Delivered to shop/db"] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }
    let unknown = ctl.run(&["trace", "shop/nobody"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("margayctl endpoint list"), "{unknown:?}");
}

#[test]
fn a_hook_that_has_lost_its_program_is_pointed_out() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let [a, b] = ["a", "b"].map(|name| node.sandbox(name));
    let [of_a, of_b] = [&a, &b].map(|pod| pod.add(&network));
    let veth = of_a["interfaces"][0]["name"].as_str().expect("name");
    node.run(&["tc", "qdisc", "del", "dev", veth, "clsact"]);

    let answer = ctl.json(&["trace", "a", &address(&of_b, true).to_string()]);

    assert_eq!(answer["steps"][0]["attached"], "nothing");
    assert_eq!(answer["steps"][0]["counter"], json!(null));
    assert_eq!(answer["steps"][2]["counter"], "to_pod", "{answer:#}");
    assert_eq!(answer["outcome"]["result"], "delivered");
}

/// Frames that no option makes.
fn frames(a: IpAddr, b: IpAddr) -> [(&'static str, Vec<u8>); 2] {
    let (host, mac) = ([0xee; 6], [2; 6]);
    let (ethertype, mut packet) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (0x0800, Ipv4::new(a.octets(), b.octets(), 17).packet(&packet::udp(1, 2, b"data")))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (0x86dd, Ipv6::new(a.octets(), b.octets(), 17).packet(&packet::udp(1, 2, b"data")))
        }
        _ => unreachable!("of one family"),
    };
    packet.truncate(packet.len() - 1);
    [
        ("ethertype", ethernet(host, mac, 0x88b5, b"an experiment of somebody's")),
        ("malformed", ethernet(host, mac, ethertype, &packet)),
    ]
}

/// Gives a TCP flow a verdict.
pub(super) fn know(
    datapath: &margay_datapath::Datapath,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    verdict: u8,
) {
    let (src_port, dst_port) = (source.1.to_be_bytes(), destination.1.to_be_bytes());
    let (protocol, reserved) = (6, [0; 3]);
    match (source.0, destination.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            let key = FlowKeyV4 { src, dst, src_port, dst_port, protocol, reserved };
            datapath.flows().set_v4(&key, verdict).expect("set");
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            let key = FlowKeyV6 { src, dst, src_port, dst_port, protocol, reserved };
            datapath.flows().set_v6(&key, verdict).expect("set");
        }
        _ => unreachable!("of one family"),
    }
}
