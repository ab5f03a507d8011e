//! Two pods that exist in the maps alone, and a way to hand packets to the programs.

use std::net::IpAddr;

use margay_abi::{
    Counter, Flow, FlowKeyV4, FlowKeyV6, HOST_VETH_MAC, Overlay, PodInfo, Remote, Traffic,
    flow_verdict,
};
use margay_datapath::{Datapath, LoadOptions, NodeDatapath, Program, TestContext};
use margay_tests::node::{Node, UPLINK};
use margay_tests::packet::{Ipv4, Ipv6, Mac, ethernet};

/// What the kernel half says of a packet. `bpf_redirect` and `bpf_redirect_peer` alike.
pub(crate) const TC_ACT_UNSPEC: i32 = -1;
pub(crate) const TC_ACT_SHOT: i32 = 2;
pub(crate) const TC_ACT_REDIRECT: i32 = 7;

pub(crate) const HOST_MAC: Mac = HOST_VETH_MAC;
pub(crate) const A: End = End { mac: [2, 0, 0, 0, 0, 5], v4: [10, 244, 0, 5], v6: v6(5) };
pub(crate) const B: End = End { mac: [2, 0, 0, 0, 0, 6], v4: [10, 244, 0, 6], v6: v6(6) };
/// A pod of another node, in prefixes of that.
pub(crate) const FAR: End = End { mac: [0; 6], v4: [10, 244, 9, 7], v6: v6_of(9, 7) };
pub(crate) const NODE_MAC: Mac = [2, 0, 0, 0, 9, 0];
pub(crate) const OVERLAY_MAC: Mac = [2, 0, 0, 0, 0, 9];
pub(crate) const VXLAN_PORT: u16 = 4789;
/// Less than a pod's.
pub(crate) const NODE_MTU: u32 = 1350;
const FAR_PREFIXES: [&str; 2] = ["10.244.9.0/24", "fd00::900/120"];
pub(crate) const B_IFINDEX: u32 = 4242;
pub(crate) const ELSEWHERE_V4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const ELSEWHERE_V6: [u8; 16] = v6(0x99);
pub(crate) const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
pub(crate) const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const MTU: u32 = 1400;

/// A pod's addresses.
pub(crate) struct End {
    pub(crate) mac: Mac,
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u8; 16],
}

const fn v6(last: u8) -> [u8; 16] {
    v6_of(0, last)
}

const fn v6_of(node: u8, last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, node, last]
}

/// The programs, and pods [`A`] on an interface that exists and [`B`] on one that need not.
pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
    pub(crate) ifindex: u32,
    /// Of the interface.
    pub(crate) mac: Mac,
    nodes: Option<NodeDatapath>,
    node: Node,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) action: i32,
    pub(crate) counter: Option<Counter>,
    pub(crate) frame: Vec<u8>,
}

impl Bench {
    /// `None` where the machine does not let it.
    pub(crate) fn new() -> Option<Self> {
        Self::with_flags(0)
    }

    /// With these `pod_flags` for pod A.
    pub(crate) fn with_flags(flags: u32) -> Option<Self> {
        let node = Node::new()?;
        let options = LoadOptions { max_pods: 16, max_flows: 1024, lock_dir: node.path("run") };
        let datapath = Datapath::open_or_load(&node.bpffs_root(), &options).expect("load");
        let links = node.netlink(async |netlink| netlink.links().await.expect("links"));
        let uplink = links.iter().find(|link| link.name == UPLINK).expect("uplink");
        let mac = uplink.mac;
        let bench = Self { datapath, ifindex: uplink.index, mac, nodes: None, node };
        bench.put_pod(&A, bench.ifindex, flags);
        bench.put_pod(&B, B_IFINDEX, 0);
        Some(bench)
    }

    /// On a node that reaches [`FAR`]'s in a `remote_mode`, whose interface is also its uplink.
    pub(crate) fn among_nodes(mode: u8) -> Option<Self> {
        let mut bench = Self::new()?;
        let node = &bench.node;
        let options = LoadOptions::new(node.path("run"));
        let nodes = NodeDatapath::open_or_load(&node.bpffs_root(), &options).expect("load");
        let address = std::net::Ipv4Addr::new(192, 168, 77, 2).to_ipv6_mapped().octets();
        let remote = Remote { node: address, mtu: NODE_MTU, mac: NODE_MAC, mode, reserved: 0 };
        for prefix in FAR_PREFIXES {
            nodes.remotes().set(prefix.parse().expect("prefix"), &remote).expect("set");
        }
        let port = VXLAN_PORT.to_be_bytes();
        let overlay = Overlay { ifindex_v4: 4343, ifindex_v6: 0, vni: 1, port, mac: OVERLAY_MAC };
        nodes.set_overlay(&overlay).expect("overlay");
        nodes.take_over_from_pods().expect("take over");
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").expect("forwarding");
        }
        bench.nodes = Some(nodes);
        Some(bench)
    }

    /// Where the pins are, and the locks.
    pub(crate) fn folders(&self) -> [std::path::PathBuf; 2] {
        [self.node.bpffs_root(), self.node.path("run")]
    }

    /// A node's part of the dataplane.
    pub(crate) fn nodes(&self) -> &NodeDatapath {
        self.nodes.as_ref().expect("a node among others")
    }

    pub(crate) fn forget_remotes(&self) {
        for prefix in FAR_PREFIXES {
            self.nodes().remotes().remove(prefix.parse().expect("prefix")).expect("remove");
        }
    }

    /// Hands a packet to a program of the interface.
    pub(crate) fn arrive(&self, program: Program, frame: &[u8]) -> Outcome {
        self.run(program, frame, self.ifindex)
    }

    /// What the other node sends plainly for pod A.
    pub(crate) fn far_sends_v4(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let packet = Ipv4::new(FAR.v4, A.v4, protocol).packet(payload);
        ethernet(self.mac, NODE_MAC, 0x0800, &packet)
    }

    pub(crate) fn far_sends_v6(&self, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let packet = Ipv6::new(FAR.v6, A.v6, next_header).packet(payload);
        ethernet(self.mac, NODE_MAC, 0x86dd, &packet)
    }

    /// Writes the entries of a pod anew.
    pub(crate) fn put_pod(&self, end: &End, ifindex: u32, flags: u32) {
        let pod = PodInfo { ifindex, mtu: MTU, flags, pod_mac: end.mac, host_mac: HOST_MAC };
        for address in [IpAddr::from(end.v4), IpAddr::from(end.v6)] {
            self.datapath.pods().insert(address, &pod).expect("insert pod");
        }
    }

    /// Hands pod A's packet to `from_pod`.
    pub(crate) fn pod_sends(&self, frame: &[u8]) -> Outcome {
        self.run(Program::FromPod, frame, self.ifindex)
    }

    /// Hands a packet of the stack for pod A to `to_pod`.
    pub(crate) fn stack_sends(&self, frame: &[u8]) -> Outcome {
        self.run(Program::ToPod, frame, 0)
    }

    /// Hands a packet that came in by `ingress_ifindex` to a program on pod A's interface.
    pub(crate) fn run(&self, program: Program, frame: &[u8], ingress_ifindex: u32) -> Outcome {
        let context =
            TestContext { ifindex: self.ifindex, ingress_ifindex, ..TestContext::default() };
        let before = self.datapath.stats().expect("stats");
        let run = self.datapath.test_run(program, frame, context).expect("test run");
        let after = self.datapath.stats().expect("stats");
        Outcome { action: run.action, counter: counted(&before, &after, frame), frame: run.frame }
    }

    /// Makes flows between A and B direct, over both families. Each is a protocol and its
    /// two ports.
    pub(crate) fn know_direct(&self, flows: &[(u8, u16, u16)]) {
        let table = self.datapath.flows();
        for (protocol, src_port, dst_port) in flows {
            let v4 = key_v4(*protocol, *src_port, *dst_port);
            let v6 = key_v6(*protocol, *src_port, *dst_port);
            table.set_v4(&v4, flow_verdict::DIRECT).expect("set a flow");
            table.set_v6(&v6, flow_verdict::DIRECT).expect("set a flow");
        }
    }

    pub(crate) fn flow_v4(&self, key: &FlowKeyV4) -> Option<u8> {
        self.datapath.flows().get_v4(key).expect("flow").map(|Flow { verdict, .. }| verdict)
    }

    pub(crate) fn flow_v6(&self, key: &FlowKeyV6) -> Option<u8> {
        self.datapath.flows().get_v6(key).expect("flow").map(|Flow { verdict, .. }| verdict)
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.datapath.flows().count().expect("flows")
    }
}

/// The one counter that went up, by one packet and the frame's bytes.
fn counted(
    before: &[(Counter, Traffic)],
    after: &[(Counter, Traffic)],
    frame: &[u8],
) -> Option<Counter> {
    let mut changed = before.iter().zip(after).filter(|(before, after)| before != after);
    let ((counter, before), (_, after)) = changed.next()?;
    assert!(changed.next().is_none(), "a packet counted twice");
    assert_eq!(after.packets - before.packets, 1);
    assert_eq!(after.bytes - before.bytes, frame.len() as u64);
    Some(*counter)
}

impl Outcome {
    /// Asserts that the packet was left as it is.
    #[track_caller]
    pub(crate) fn expect(&self, action: i32, counter: Counter, sent: &[u8]) {
        assert_eq!((self.action, self.counter), (action, Some(counter)));
        assert_eq!(self.frame, sent, "the frame is changed");
    }

    #[track_caller]
    pub(crate) fn expect_stack(&self, counter: Counter, sent: &[u8]) {
        self.expect(TC_ACT_UNSPEC, counter, sent);
    }

    #[track_caller]
    pub(crate) fn expect_drop(&self, counter: Counter, sent: &[u8]) {
        self.expect(TC_ACT_SHOT, counter, sent);
    }

    #[track_caller]
    pub(crate) fn expect_redirect(&self, counter: Counter) {
        assert_eq!((self.action, self.counter), (TC_ACT_REDIRECT, Some(counter)));
    }
}

/// What pod A sends as an IPv4 packet.
pub(crate) fn frame_v4(packet: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, A.mac, 0x0800, packet)
}

/// What pod A sends as an IPv6 packet.
pub(crate) fn frame_v6(packet: &[u8]) -> Vec<u8> {
    ethernet(HOST_MAC, A.mac, 0x86dd, packet)
}

/// From pod A to pod B.
pub(crate) fn a_to_b_v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame_v4(&Ipv4::new(A.v4, B.v4, protocol).packet(payload))
}

/// From pod A to pod B.
pub(crate) fn a_to_b_v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    frame_v6(&Ipv6::new(A.v6, B.v6, next_header).packet(payload))
}

/// What the stack sends to pod A.
pub(crate) fn stack_v4(packet: &[u8]) -> Vec<u8> {
    ethernet(A.mac, HOST_MAC, 0x0800, packet)
}

/// What the stack sends to pod A.
pub(crate) fn stack_v6(packet: &[u8]) -> Vec<u8> {
    ethernet(A.mac, HOST_MAC, 0x86dd, packet)
}

/// Key of the packets from A to B.
pub(crate) fn key_v4(protocol: u8, src_port: u16, dst_port: u16) -> FlowKeyV4 {
    FlowKeyV4 {
        src: A.v4,
        dst: B.v4,
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
        protocol,
        reserved: [0; 3],
    }
}

/// Key of the packets from A to B.
pub(crate) fn key_v6(protocol: u8, src_port: u16, dst_port: u16) -> FlowKeyV6 {
    FlowKeyV6 {
        src: A.v6,
        dst: B.v6,
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
        protocol,
        reserved: [0; 3],
    }
}
