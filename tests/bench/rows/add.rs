//! How long an ADD takes.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};
use margay::host::HostSide;
use margay::netlink::VethPair;
use margay::netns::Netns;
use margay::pod::PodSide;
use margay_abi::HOST_VETH_MAC;
use margay_tests::{Node, Pod};

use super::{Row, WALL, wall_and_cpu};
use crate::Effort;
use crate::execution::Execution;
use crate::peer::{Families, PLUGINS, Peer};
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "add",
    title: "ADD, one pod at a time",
    method: "From the start of the plugin's process to its end, as a runtime waits for it; then a DEL, \
             which does not count. One sandbox for each plugin, an attachment of its own for each ADD. `bare veth` is \
             the kernel's share: the same pair, address, neighbour and routes, asked for over netlink by a process \
             that runs already, without programs.",
    run,
};

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    for (case, families, peers, samples) in [
        ("IPv4", Families::V4, [PLUGINS, &[Peer::Veth]].concat(), effort.samples(200)),
        ("IPv4 and IPv6", Families::Both, PLUGINS.to_vec(), effort.samples(20)),
    ] {
        for (peer, cycles) in cycles(&peers, families, samples)? {
            wall_and_cpu(sheet, case, peer, cycles.iter().map(|cycle| &cycle.add));
            if families == Families::V4 {
                for (phase, times) in phases(&cycles) {
                    sheet.record(Key::new(PHASES, &phase, peer), Unit::Microseconds, times);
                }
            }
        }
    }
    let key = |peer| Key::new(WALL, "IPv4", peer);
    let (margay, ptp) = (key(Peer::Margay), key(Peer::Ptp));
    sheet.goal(Statistic::Median, &margay, Limit::AtMost(0.5), &ptp)?;
    sheet.goal(Statistic::P99, &margay, Limit::AtMost(0.7), &ptp)?;
    sheet.note("With IPv6, ptp waits for the kernel's duplicate address detection.");
    Ok(())
}

const PHASES: &str = "phases in the log of margay";

/// Each phase with its times; none of a plugin that does not tell.
fn phases(cycles: &[Cycle]) -> Vec<(String, Vec<f64>)> {
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for (phase, time) in cycles.iter().flat_map(|cycle| cycle.add.phases()) {
        match phases.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, times)) => times.push(time),
            None => phases.push((phase, vec![time])),
        }
    }
    phases
}

/// An ADD and the DEL after it.
pub(super) struct Cycle {
    pub(super) add: Execution,
    pub(super) del: Execution,
}

/// Attaches and detaches `samples` times in alternation, after two rounds that do not count: they
/// load programs, make the bridge, and warm caches.
pub(super) fn cycles(
    peers: &[Peer],
    families: Families,
    samples: usize,
) -> Result<Vec<(Peer, Vec<Cycle>)>> {
    const WARM_UP: usize = 2;
    in_turns(peers, |peer, node, turn| {
        let network = peer.network(node, families);
        let pod = node.sandbox("pod");
        let mut cycles = Vec::new();
        for round in 0..WARM_UP + samples {
            let id = format!("pod-{round}");
            let execute = |verb| {
                let invocation = peer.invocation(&pod, verb, &network);
                Execution::of(&invocation.env("CNI_CONTAINERID", &id))
            };
            let cycle = match peer {
                Peer::Veth => kernels_share(node, &pod)?,
                _ => Cycle { add: execute("ADD")?, del: execute("DEL")? },
            };
            if round >= WARM_UP {
                cycles.push(cycle);
            }
            turn.pass();
        }
        Ok(cycles)
    })
}

/// What ADD and DEL ask of the kernel, but for programs and sysctls.
fn kernels_share(node: &Node, pod: &Pod<'_>) -> Result<Cycle> {
    const HOST_VETH: &str = "bare";
    const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
    let addresses = vec![IpAddr::from([10, 244, 0, 2])];
    let netns = Netns::open(pod.netns_path())?;
    let pair = VethPair {
        host_name: HOST_VETH,
        host_mac: HOST_VETH_MAC,
        pod_name: "eth0",
        pod_mac: POD_MAC,
        pod_netns: netns.as_fd(),
        mtu: 1500,
        queues: 1,
    };
    let pod_side = PodSide {
        ifname: pair.pod_name.to_owned(),
        addresses: addresses.clone(),
        default_route: true,
        routes: Vec::new(),
        allow_ip_forwarding: false,
    };
    node.netlink(async |netlink| {
        let started = Instant::now();
        netlink.create_veth(&pair).await?;
        let link = netlink.link_by_name(HOST_VETH).await?.context("the pair is gone")?;
        pod_side.configure(&netns)?;
        netlink.set_link_up(link.index).await?;
        netlink.activate_peer(link.peer.context("the pair has one end")?).await?;
        let name = HOST_VETH.to_owned();
        let host = HostSide { name, ifindex: link.index, addresses, pod_mac: POD_MAC };
        host.route_to_pod(&netlink).await?;
        let add = Execution::of_calls(started);
        let started = Instant::now();
        netlink.delete_link(link.index).await?;
        Ok(Cycle { add, del: Execution::of_calls(started) })
    })
}
