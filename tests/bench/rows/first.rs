//! How long a new pod waits for the answer to its first packet.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use margay_tests::Pod;
use margay_tests::packet;
use margay_tests::pod::address;
use margay_tests::traffic::PATIENCE;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto,
};

use super::Row;
use crate::Effort;
use crate::peer::{Families, PEERS, Peer, WIRED_V4, WIRED_V6};
use crate::processors;
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;
use crate::turns::in_turns;

pub(super) const ROW: Row = Row {
    name: "first",
    title: "The first packet of a pod",
    method: "As soon as ADD has returned, the new pod, which knows no neighbour, sends an echo request to a pod \
             that has been there before. From then on, until its interface has received the answer of \
             its gateway or neighbour (ARP or NDP), and the echo. Of the bare veth pair, each time a new \
             one, it is the kernel's own share. All of it happens on one processor, most of it before the \
             system call that sends the request returns. `ptp` is measured less often than the others: its \
             IPv6 addresses are tentative for two seconds.",
    run,
};

const NEIGHBOUR: &str = "neighbour's answer";
const ECHO: &str = "echo";
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Times of one family, in microseconds.
struct First {
    neighbour: f64,
    echo: f64,
}

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let peers = in_turns(PEERS, |peer, node, turn| {
        let samples = effort.samples(if peer == Peer::Ptp { 10 } else { 100 });
        let network = peer.network(node, Families::Both);
        let server = node.sandbox("resident");
        let mut targets = [IpAddr::from(WIRED_V4), IpAddr::from(WIRED_V6)];
        if peer != Peer::Veth {
            let answer = peer.add(&server, &network)?.answer()?;
            targets = [true, false].map(|ipv4| address(&answer, ipv4));
        }
        turn.pass();
        let mut firsts = Vec::new();
        for round in 0..=samples {
            let both = if peer == Peer::Veth {
                ping(&peer.pair(node)?.client, targets)
            } else {
                let client = node.sandbox(&format!("client-{round}"));
                peer.add(&client, &network)?;
                let both = ping(&client, targets);
                peer.del(&client, &network)?;
                both
            };
            // In the first round the server learns its own neighbour.
            if round > 0 {
                firsts.push(both.with_context(|| format!("round {round}"))?);
            }
            turn.pass();
        }
        Ok(firsts)
    })?;
    for metric in [NEIGHBOUR, ECHO] {
        let time = |first: &First| if metric == ECHO { first.echo } else { first.neighbour };
        for (index, family) in FAMILIES.into_iter().enumerate() {
            for (peer, firsts) in &peers {
                let times = firsts.iter().map(|both| time(&both[index])).collect();
                sheet.record(Key::new(metric, family, *peer), Unit::Microseconds, times);
            }
            let key = |peer: Peer| Key::new(metric, family, peer);
            for (limit, other) in [(0.5, Peer::Linux), (1.2, Peer::Veth)] {
                let limit = Limit::AtMost(limit);
                sheet.goal(Statistic::Median, &key(Peer::Margay), limit, &key(other))?;
            }
        }
    }
    Ok(())
}

/// Sends a first packet of both families from a pod.
fn ping(pod: &Pod<'_>, targets: [IpAddr; 2]) -> Result<Vec<First>> {
    let [_, processor] = processors::first_and_last()?;
    pod.enter(|| {
        processors::keep_to(processor)?;
        targets.into_iter().map(first).collect()
    })
}

/// Sends an echo request to `target`, from where the calling thread is.
fn first(target: IpAddr) -> Result<First> {
    /// `ETH_P_ALL`, in network byte order.
    const EVERYTHING: u32 = 0x0003_u16.to_be() as u32;
    let (family, protocol, request_type) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let raw = |family, protocol| {
        net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))
    };
    let everything = Protocol::from_raw(EVERYTHING.try_into()?);
    let (echo, frames) = (raw(family, protocol)?, raw(AddressFamily::PACKET, everything)?);
    sockopt::set_socket_timeout(&frames, Timeout::Recv, Some(PATIENCE))?;
    let mut request = packet::echo(request_type, 1);
    // For IPv6 the kernel does it.
    if target.is_ipv4() {
        let checksum = packet::checksum(&request);
        request[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    let started = Instant::now();
    net::sendto(&echo, &request, SendFlags::empty(), &SocketAddr::new(target, 0))
        .context("send an echo request")?;
    let mut neighbour = None;
    loop {
        let mut frame = [0; 256];
        let (len, _) = net::recv(&frames, &mut frame, RecvFlags::empty()).context("no answer")?;
        match seen(&frame[..len]) {
            Some(Seen::Neighbour) => neighbour = neighbour.or(Some(started.elapsed())),
            Some(Seen::Echo) => {
                let neighbour = neighbour.context("an echo without a neighbour")?;
                let [neighbour, echo] = [neighbour, started.elapsed()].map(microseconds);
                return Ok(First { neighbour, echo });
            }
            None => {}
        }
        ensure!(started.elapsed() < PATIENCE, "no answer");
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

enum Seen {
    Neighbour,
    Echo,
}

/// What a frame is of what is waited for.
fn seen(frame: &[u8]) -> Option<Seen> {
    match (frame.get(12..14)?, frame.get(14..)?) {
        ([0x08, 0x06], arp) if arp.get(6..8)? == [0, 2] => Some(Seen::Neighbour),
        ([0x08, 0x00], ip) if *ip.get(9)? == 1 && *ip.get(20)? == 0 => Some(Seen::Echo),
        ([0x86, 0xdd], ip) if *ip.get(6)? == 58 => match ip.get(40)? {
            136 => Some(Seen::Neighbour),
            129 => Some(Seen::Echo),
            _ => None,
        },
        _ => None,
    }
}
