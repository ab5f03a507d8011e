//! What one packet costs in each program, and whether that grows with the pods.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use margay_abi::{DEFAULT_MAX_FLOWS, FlowKeyV4, FlowKeyV6, HOST_VETH_MAC, PodInfo, flow_verdict};
use margay_datapath::{Datapath, LoadOptions, Program, TestContext};
use margay_tests::Node;
use margay_tests::node::UPLINK;
use margay_tests::packet::{self, Ipv4, Ipv6, Mac, ethernet, tcp_flags};

use super::Row;
use crate::Effort;
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "programs",
    title: "The programs alone",
    method: "`BPF_PROG_TEST_RUN` on one processor: the mean of 250 runs on one packet, again and again. Cold is \
             one run each on packets to 4,096 pods in turn, of as many flows, with the time that the clock \
             takes; a new flow is a SYN from another port each time, for which a full table has to forget \
             another flow. Every run of `from_pod` that delivers a packet ends with the redirect, which is not \
             carried out.",
    run,
};

const TIME: &str = "time per packet";
/// As many as a hop limit of 255 lasts for.
const REPEAT: u32 = 250;
/// Pods that have a flow with the sender.
const PARTNERS: u32 = 4096;
const SENDER_MAC: Mac = [2, 0, 0, 0, 0, 5];
const SENDER: u32 = 0;
const PORTS: (u16, u16) = (40_000, 80);

/// A packet that takes one way through a program.
struct Case {
    name: &'static str,
    program: Program,
    frame: fn(partner: u32) -> Vec<u8>,
}

const CASES: [Case; 8] = [
    Case { name: "from_pod, TCP data, IPv4", program: Program::FromPod, frame: data_v4 },
    Case { name: "from_pod, TCP data, IPv6", program: Program::FromPod, frame: data_v6 },
    Case { name: "from_pod, TCP SYN, IPv4", program: Program::FromPod, frame: syn_v4 },
    Case { name: "from_pod, TCP SYN, IPv6", program: Program::FromPod, frame: syn_v6 },
    Case { name: "from_pod, to no pod, IPv4", program: Program::FromPod, frame: elsewhere_v4 },
    Case { name: "to_pod, from a pod, IPv4", program: Program::ToPod, frame: from_stack_v4 },
    Case { name: "to_pod, from a pod, IPv6", program: Program::ToPod, frame: from_stack_v6 },
    Case { name: "to_pod, from no pod, IPv4", program: Program::ToPod, frame: from_elsewhere_v4 },
];
/// Those that are measured cold as well.
const COLD: usize = 2;

/// Those that are measured cold alone: of no flow twice.
const NEW: [Case; 2] = [
    Case { name: "from_pod, new flow, IPv4", program: Program::FromPod, frame: new_v4 },
    Case { name: "from_pod, new flow, IPv6", program: Program::FromPod, frame: new_v6 },
];

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let levels: [u32; 2] = if effort.quick { [10, 1000] } else { [10, 60_000] };
    let rounds = effort.samples(200);
    let measured = in_turns(&levels, |pods, node, turn| {
        let subject = Subject::new(node, pods)?;
        turn.pass();
        let mut warm: Vec<Vec<f64>> = CASES.iter().map(|_| Vec::new()).collect();
        let mut cold: Vec<Vec<f64>> = (0..COLD + NEW.len()).map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for (case, times) in CASES.iter().zip(&mut warm) {
                times.push(subject.run(case, 1, REPEAT)?);
            }
            for (case, times) in CASES[..COLD].iter().zip(&mut cold) {
                for step in 0..16 {
                    let next = (round as u32 * 16 + step) * 61 % PARTNERS.min(pods - 1);
                    times.push(subject.run(case, 1 + next, 1)?);
                }
            }
            for (case, times) in NEW.iter().zip(&mut cold[COLD..]) {
                for step in 0..16 {
                    times.push(subject.run(case, round as u32 * 16 + step, 1)?);
                }
            }
            turn.pass();
        }
        Ok((warm, cold, subject.sizes()?))
    })?;
    for (index, case) in CASES.iter().enumerate() {
        for (pods, (warm, cold, _)) in &measured {
            sheet.record(key(case, *pods), Unit::Nanoseconds, warm[index].clone());
            if index < COLD {
                sheet.record(cold_key(case, *pods), Unit::Nanoseconds, cold[index].clone());
            }
        }
    }
    for (index, case) in NEW.iter().enumerate() {
        for (pods, (_, cold, _)) in &measured {
            sheet.record(cold_key(case, *pods), Unit::Nanoseconds, cold[COLD + index].clone());
        }
    }
    for size in &measured[0].1.2 {
        sheet.note(size);
    }
    let [few, many] = levels;
    for case in &CASES {
        sheet.goal(Statistic::Median, &key(case, many), Limit::AtMost(1.1), &key(case, few))?;
    }
    Ok(())
}

fn key(case: &Case, pods: u32) -> Key {
    Key::new(TIME, case.name, format!("{pods} pods"))
}

fn cold_key(case: &Case, pods: u32) -> Key {
    Key::new(TIME, case.name, format!("{pods} pods, cold"))
}

/// The programs, and pods that exist in the maps alone.
struct Subject {
    datapath: Datapath,
    ifindex: u32,
}

impl Subject {
    fn new(node: &Node, pods: u32) -> Result<Self> {
        let options = LoadOptions::new(node.path("run"));
        let datapath = Datapath::open_or_load(&node.bpffs_root(), &options)?;
        let links = node.netlink(async |netlink| netlink.links().await)?;
        let uplink = links.iter().find(|link| link.name == UPLINK).context("an interface")?;
        let subject = Self { datapath, ifindex: uplink.index };
        subject.fill_flows()?;
        for pod in 0..pods {
            // What is delivered to a partner looks like what the sender sent, but for its hop limit,
            // so that the same packet can be run again.
            let (ifindex, pod_mac, host_mac) = match pod {
                SENDER => (subject.ifindex, SENDER_MAC, HOST_VETH_MAC),
                _ => (1_000_000 + pod, HOST_VETH_MAC, SENDER_MAC),
            };
            let info = PodInfo { ifindex, mtu: 1500, flags: 0, pod_mac, host_mac };
            for address in [IpAddr::from(v4(pod)), IpAddr::from(v6(pod))] {
                subject.datapath.pods().insert(address, &info)?;
            }
            if (1..=PARTNERS).contains(&pod) {
                subject.datapath.flows().set_v4(&flow_v4(pod), flow_verdict::DIRECT)?;
                subject.datapath.flows().set_v6(&flow_v6(pod), flow_verdict::DIRECT)?;
            }
        }
        Ok(subject)
    }

    /// With flows of nobody.
    fn fill_flows(&self) -> Result<()> {
        for number in 0..DEFAULT_MAX_FLOWS {
            let stranger = number.to_be_bytes();
            let key = FlowKeyV4 { src: stranger, ..flow_v4(1) };
            self.datapath.flows().set_v4(&key, flow_verdict::DIRECT)?;
            let mut src = v6(1);
            src[..4].copy_from_slice(&stranger);
            let key = FlowKeyV6 { src, ..flow_v6(1) };
            self.datapath.flows().set_v6(&key, flow_verdict::DIRECT)?;
        }
        Ok(())
    }

    /// Mean time of a run, in nanoseconds.
    fn run(&self, case: &Case, partner: u32, repeat: u32) -> Result<f64> {
        let context = TestContext { ifindex: self.ifindex, repeat, ..TestContext::default() };
        let run = self.datapath.test_run(case.program, &(case.frame)(partner), context)?;
        let delivers = case.program == Program::FromPod && !case.name.contains("no pod");
        let action = if delivers { 7 } else { -1 };
        ensure!(run.action == action, "{}: action {}", case.name, run.action);
        Ok(run.duration.as_nanos() as f64)
    }

    /// How large the programs are, in words.
    fn sizes(&self) -> Result<Vec<String>> {
        let size = |program: Program| {
            let size = self.datapath.program_size(program).context("a program's size")?;
            let name = program.name();
            Ok(format!(
                "`{name}`: {} instructions, of which the verifier looked at {} on all ways through \
                 it; {} bytes of machine code.",
                size.instructions, size.verified, size.machine_code_bytes,
            ))
        };
        Program::OF_POD.into_iter().map(size).collect()
    }
}

fn v4(pod: u32) -> [u8; 4] {
    (0x0a80_0000 + pod).to_be_bytes()
}

fn v6(pod: u32) -> [u8; 16] {
    (0xfd00_u128 << 112 | u128::from(pod)).to_be_bytes()
}

fn flow_v4(partner: u32) -> FlowKeyV4 {
    let (src, dst) = (v4(SENDER), v4(partner));
    let (src_port, dst_port) = (PORTS.0.to_be_bytes(), PORTS.1.to_be_bytes());
    FlowKeyV4 { src, dst, src_port, dst_port, protocol: 6, reserved: [0; 3] }
}

fn flow_v6(partner: u32) -> FlowKeyV6 {
    let (src, dst) = (v6(SENDER), v6(partner));
    let (src_port, dst_port) = (PORTS.0.to_be_bytes(), PORTS.1.to_be_bytes());
    FlowKeyV6 { src, dst, src_port, dst_port, protocol: 6, reserved: [0; 3] }
}

fn data_v4(partner: u32) -> Vec<u8> {
    sent_v4(v4(partner), PORTS.0, tcp_flags::ACK)
}

fn data_v6(partner: u32) -> Vec<u8> {
    sent_v6(v6(partner), PORTS.0, tcp_flags::ACK)
}

fn syn_v4(partner: u32) -> Vec<u8> {
    sent_v4(v4(partner), 50_000, tcp_flags::SYN)
}

fn syn_v6(partner: u32) -> Vec<u8> {
    sent_v6(v6(partner), 50_000, tcp_flags::SYN)
}

fn new_v4(number: u32) -> Vec<u8> {
    let (pod, port) = new(number);
    sent_v4(v4(pod), port, tcp_flags::SYN)
}

fn new_v6(number: u32) -> Vec<u8> {
    let (pod, port) = new(number);
    sent_v6(v6(pod), port, tcp_flags::SYN)
}

/// A pod and a port that no other number has.
fn new(number: u32) -> (u32, u16) {
    (1 + number % 8, 10_000 + (number / 8) as u16)
}

fn elsewhere_v4(_: u32) -> Vec<u8> {
    sent_v4([192, 0, 2, 1], PORTS.0, tcp_flags::ACK)
}

fn from_stack_v4(partner: u32) -> Vec<u8> {
    let ip = Ipv4::new(v4(partner), v4(SENDER), 6);
    ethernet(SENDER_MAC, HOST_VETH_MAC, 0x0800, &ip.packet(&packet::tcp(80, 1, tcp_flags::ACK)))
}

fn from_stack_v6(partner: u32) -> Vec<u8> {
    let ip = Ipv6::new(v6(partner), v6(SENDER), 6);
    ethernet(SENDER_MAC, HOST_VETH_MAC, 0x86dd, &ip.packet(&packet::tcp(80, 1, tcp_flags::ACK)))
}

fn from_elsewhere_v4(_: u32) -> Vec<u8> {
    let ip = Ipv4::new([192, 0, 2, 1], v4(SENDER), 6);
    ethernet(SENDER_MAC, HOST_VETH_MAC, 0x0800, &ip.packet(&packet::tcp(80, 1, tcp_flags::ACK)))
}

fn sent_v4(dst: [u8; 4], src_port: u16, flags: u8) -> Vec<u8> {
    let ip = Ipv4 { ttl: 255, ..Ipv4::new(v4(SENDER), dst, 6) };
    let segment = packet::tcp(src_port, PORTS.1, flags);
    ethernet(HOST_VETH_MAC, SENDER_MAC, 0x0800, &ip.packet(&segment))
}

fn sent_v6(dst: [u8; 16], src_port: u16, flags: u8) -> Vec<u8> {
    let ip = Ipv6 { hop_limit: 255, ..Ipv6::new(v6(SENDER), dst, 6) };
    let segment = packet::tcp(src_port, PORTS.1, flags);
    ethernet(HOST_VETH_MAC, SENDER_MAC, 0x86dd, &ip.packet(&segment))
}
