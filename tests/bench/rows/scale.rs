//! What a cluster of many nodes costs each of them.

mod counted;
mod records;
mod usage;

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use margay::ipam::boot_id;
use margay::naming::OVERLAY_DEVICE;
use margay_datastore::{Encapsulation, Fact, Ipam, Placement, Pool, Store, Topic};
use margay_tests::cluster::{Cluster, Families, Layout, Member};
use margay_tests::node;
use margay_tests::traffic::Place;
use serde_json::{Value, json};

use self::counted::Counted;
use self::usage::{Usage, peak_rss_mib};
use super::{CPU, Row};
use crate::Effort;
use crate::execution::Execution;
use crate::sheet::{Key, Limit, Sheet, Unit};
use crate::statistics::Statistic;

pub(super) const ROW: Row = Row {
    name: "scale",
    title: "Clusters of many nodes",
    method: "An etcd of one member holds what so many nodes with 50 dual-stack pods each have written there. Three nodes \
             are real, with an agent each; the others are records. All nodes and etcd share this machine. \
             Received is what comes to a node's interface, with the headers of TCP. Agents look after their nodes every 30 \
             seconds, not every 60, so that an idle minute has two turns of it. A pod elsewhere is one assignment of \
             both families on a node that is not real, 20 in a second; what it costs an agent is the median of the three, with what \
             the agent does anyhow. A route \
             is timed from etcd's answer to the write of a block on such a node, until the kernel of each real node has it.",
    run,
};

/// Nodes with an agent.
const REAL: u8 = 3;
const AGENT: &str = "agent";
const PLUGIN: &str = "margay";
/// What the names of nodes begin with that ask for addresses and have no record.
const UNREGISTERED: &str = "unregistered-";
/// Between two pods that come elsewhere.
const PACE: Duration = Duration::from_millis(50);
/// Beyond anything that is measured here.
const PATIENCE: Duration = Duration::from_secs(120);

fn run(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    // A thread of its own: it becomes the network between the nodes.
    thread::scope(|scope| {
        let outcome = scope.spawn(|| measure(effort, sheet)).join();
        outcome.map_err(|_| anyhow!("the cluster panicked"))?
    })
}

fn measure(effort: Effort, sheet: &mut Sheet) -> Result<()> {
    let (sizes, pods): (&[u16], u16) =
        if effort.quick { (&[2, 4], 3) } else { (&[10, 100, 1000], 50) };
    let mut bench = Bench {
        effort,
        cluster: Cluster::with(Layout::OneSubnet, Families::Both, REAL, 1)
            .context("a cluster needs root")?,
        pools: pools(Encapsulation::Vxlan)?,
        case: String::new(),
        nodes: 0,
    };
    for &size in sizes {
        bench.case = format!("{size} nodes");
        records::fill(&bench.cluster, &bench.pools, bench.nodes..size, pods)?;
        bench.nodes = size;
        bench.size_of_etcd(sheet)?;
        bench.starts(AGENT, sheet)?;
        bench.idleness(sheet)?;
        bench.pods_elsewhere(sheet)?;
        bench.new_blocks(sheet)?;
        bench.requests(sheet)?;
        bench.adds(sheet)?;
        bench.cluster.nodes().iter().for_each(Member::stop_agent);
    }
    bench.set_mode(Encapsulation::None)?;
    bench.starts("agent, plain routes", sheet)?;
    judge(sheet, sizes)
}

fn judge(sheet: &mut Sheet, sizes: &[u16]) -> Result<()> {
    let case = |size: u16| format!("{size} nodes");
    let (few, many) = (case(sizes[0]), case(sizes[sizes.len() - 1]));
    let of = |metric: &str, case: &str, peer: &str| Key::new(metric, case, peer);
    for metric in [ADD, CLAIM] {
        let (of, to) = (of(metric, &many, PLUGIN), of(metric, &few, PLUGIN));
        sheet.goal(Statistic::Median, &of, Limit::AtMost(1.2), &to)?;
    }
    sheet.absolute_goal(Statistic::P99, &of(ROUTE, &many, AGENT), Limit::AtMost(1_000.0))?;
    sheet.absolute_goal(Statistic::Median, &of(START, &many, AGENT), Limit::AtMost(5_000.0))?;
    sheet.absolute_goal(Statistic::Median, &of(RSS, &many, AGENT), Limit::AtMost(256.0))?;
    sheet.absolute_goal(Statistic::Median, &of(RATE, &many, AGENT), Limit::AtLeast(1_000.0))
}

const START: &str = "start to the last route";
const START_CPU: &str = "CPU time of a start";
const START_RECEIVED: &str = "received at a start";
const RSS: &str = "peak resident set";
const IDLE_CPU: &str = "CPU time of an idle minute";
const IDLE_RECEIVED: &str = "received in an idle minute";
const POD_CPU: &str = "CPU time for a pod elsewhere";
const POD_RECEIVED: &str = "received for a pod elsewhere";
const RATE: &str = "pods elsewhere that one CPU bears";
const ROUTE: &str = "new block to its route";
const BLOCK_CPU: &str = "CPU time for a new block";
const ADD: &str = "ADD on a real node";
const UPKEEP: &str = "read of blocks by a turn of upkeep";
const CLAIM: &str = "requests for an address of a new block";
const AFFINE: &str = "requests for two addresses of own blocks";
const SIZE: &str = "database of etcd";
const GROWTH: &str = "history in etcd for a pod";

struct Bench {
    effort: Effort,
    cluster: Cluster,
    pools: Vec<Pool>,
    case: String,
    /// Nodes that are not real.
    nodes: u16,
}

/// Room for 2,048 blocks of IPv4, and for more of IPv6 than anybody has.
fn pools(encapsulation: Encapsulation) -> Result<Vec<Pool>> {
    let pool = |cidr: &str| Ok(Pool { encapsulation, ..Pool::new(cidr.parse()?) });
    ["10.64.0.0/15", "fd00:10:244::/64"].into_iter().map(pool).collect()
}

impl Bench {
    fn record(&self, sheet: &mut Sheet, metric: &str, peer: &str, unit: Unit, samples: Vec<f64>) {
        sheet.record(Key::new(metric, &self.case, peer), unit, samples);
    }

    fn size_of_etcd(&mut self, sheet: &mut Sheet) -> Result<()> {
        let mebibytes = self.database_kib()? / 1024.0;
        self.record(sheet, SIZE, "etcd", Unit::Mebibytes, vec![mebibytes]);
        Ok(())
    }

    fn database_kib(&mut self) -> Result<f64> {
        let file = self.cluster.etcd().directory().join("m0/member/snap/db");
        Ok(file.metadata()?.len() as f64 / 1024.0)
    }

    /// Starts the agents one after the other, each on a node without a route of an agent.
    fn starts(&self, peer: &str, sheet: &mut Sheet) -> Result<()> {
        let (mut wall, mut cpu, mut received, mut rss) = (vec![], vec![], vec![], vec![]);
        for member in self.cluster.nodes() {
            member.enter(forget_routes);
            let wanted = self.routes_wanted(member)?;
            let before = Usage::before_the_start(member)?;
            member.start_agent_with(&often());
            wait_until("all routes are there", || member.remote_routes().len() >= wanted)?;
            let used = Usage::of(member)?.since(&before);
            wall.push(used.wall_ms);
            cpu.push(used.cpu_ms);
            received.push(used.received_kib / 1024.0);
            self.settle()?;
            rss.push(peak_rss_mib(member)?);
        }
        self.record(sheet, START, peer, Unit::Milliseconds, wall);
        self.record(sheet, START_CPU, peer, Unit::Milliseconds, cpu);
        self.record(sheet, START_RECEIVED, peer, Unit::Mebibytes, received);
        self.record(sheet, RSS, peer, Unit::Mebibytes, rss);
        Ok(())
    }

    /// The blocks of all others, and an own one of each family.
    fn routes_wanted(&self, member: &Member) -> Result<usize> {
        let blocks = blocks(&self.cluster.store())?;
        // Nodes without a record are not reached.
        let others = blocks
            .iter()
            .filter(|block| block.node != member.name() && !block.node.starts_with(UNREGISTERED));
        Ok(others.count() + self.pools.len())
    }

    /// Nothing happens, for as long as the agents take to look at everything once.
    fn idleness(&self, sheet: &mut Sheet) -> Result<()> {
        let span = Duration::from_secs(if self.effort.quick { 1 } else { 30 });
        let used = self.used(|| {
            thread::sleep(span);
            Ok(())
        })?;
        let minutes = span.as_secs_f64() / 60.0;
        let cpu = used.iter().map(|used| used.cpu_ms / minutes).collect();
        let received = used.iter().map(|used| used.received_kib / minutes).collect();
        self.record(sheet, IDLE_CPU, AGENT, Unit::Milliseconds, cpu);
        self.record(sheet, IDLE_RECEIVED, AGENT, Unit::Kibibytes, received);
        Ok(())
    }

    fn pods_elsewhere(&mut self, sheet: &mut Sheet) -> Result<()> {
        let (store, boot_id) = (self.cluster.store(), boot_id()?);
        let count = if self.effort.quick { 4 } else { 100 };
        let before_kib = self.database_kib()?;
        let used = self.used(|| {
            for index in 0..count {
                let next = Instant::now() + PACE;
                let node = records::node_name(index % self.nodes);
                records::make_pod(&store, &self.pools, &node, &format!("{}n{index}", self.nodes))?;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            self.settle()
        })?;
        let growth_kib = (self.database_kib()? - before_kib) / f64::from(count);
        for index in 0..count {
            let node = records::node_name(index % self.nodes);
            let pod = records::assignment(&self.pools, &format!("{}n{index}", self.nodes))?;
            Ipam::new(&store, &node, &boot_id).release(&pod.attachment)?;
            store.delete_endpoint(&pod.attachment, &node)?;
        }
        self.settle()?;
        let each = |number: fn(&usage::Used) -> f64| -> Vec<f64> {
            used.iter().map(|used| number(used) / f64::from(count)).collect()
        };
        let cpu = each(|used| used.cpu_ms);
        // A tick of the clock that processes are charged by, if nothing was seen.
        let tick_ms = 10.0 / f64::from(count);
        let rate = cpu.iter().map(|cpu_ms| 1e3 / cpu_ms.max(tick_ms)).collect();
        self.record(sheet, POD_CPU, AGENT, Unit::Milliseconds, cpu);
        self.record(sheet, POD_RECEIVED, AGENT, Unit::Kibibytes, each(|used| used.received_kib));
        self.record(sheet, RATE, AGENT, Unit::PerSecond, rate);
        self.record(sheet, GROWTH, "etcd", Unit::Kibibytes, vec![growth_kib]);
        Ok(())
    }

    /// Nodes that are not real claim blocks by asking for an address in them.
    fn new_blocks(&self, sheet: &mut Sheet) -> Result<()> {
        let counted = Counted::new(self.cluster.store());
        let (store, boot_id) = (Store::new(counted.clone()), boot_id()?);
        let free = self.unclaimed_blocks(self.effort.samples(30))?;
        let mut times = Vec::new();
        let count = free.len() as f64;
        let used = self.used(|| {
            for (index, address) in free.into_iter().enumerate() {
                let mut pod = records::assignment(&self.pools, &format!("{}b{index}", self.nodes))?;
                (pod.ipv4, pod.ipv6, pod.requested) = (false, false, vec![address]);
                let node = records::node_name(u16::try_from(index)? % self.nodes);
                counted.take();
                let (written, seen) = self.seen(address, || {
                    Ipam::new(&store, &node, &boot_id).assign(&pod)?;
                    let mut requests = counted.take().into_iter();
                    let block = requests
                        .find(|request| request.is_write && request.key.starts_with("blocks/"));
                    Ok(block.context("no block was written")?.answered)
                })?;
                times.extend(
                    seen.iter()
                        .map(|seen| seen.saturating_duration_since(written).as_secs_f64() * 1e3),
                );
            }
            self.settle()
        })?;
        let cpu = used.iter().map(|used| used.cpu_ms / count).collect();
        self.record(sheet, ROUTE, AGENT, Unit::Milliseconds, times);
        self.record(sheet, BLOCK_CPU, AGENT, Unit::Milliseconds, cpu);
        Ok(())
    }

    /// When `write` says that it wrote, and when each real node had a route to `address` after.
    fn seen(
        &self,
        address: IpAddr,
        write: impl FnOnce() -> Result<Instant>,
    ) -> Result<(Instant, Vec<Instant>)> {
        thread::scope(|scope| {
            let watch = |member: &'_ Member| wait_for_route(member, address);
            let members = self.cluster.nodes().iter();
            let watchers: Vec<_> =
                members.map(|member| scope.spawn(move || watch(member))).collect();
            let written = write()?;
            let seen = watchers
                .into_iter()
                .map(|watcher| watcher.join().map_err(|_| anyhow!("a watcher panicked"))?);
            Ok((written, seen.collect::<Result<_>>()?))
        })
    }

    /// An address in each of so many blocks of IPv4 that nobody has.
    fn unclaimed_blocks(&self, count: usize) -> Result<Vec<IpAddr>> {
        let taken = blocks(&self.cluster.store())?;
        let first = u32::from(Ipv4Addr::new(10, 64, 0, 0));
        let addresses =
            (0..2_048).rev().map(|block| IpAddr::from(Ipv4Addr::from(first + block * 64 + 1)));
        let free = addresses.filter(|ip| !taken.iter().any(|block| block.cidr.contains(*ip)));
        Ok(free.take(count).collect())
    }

    /// What an assignment asks of etcd: on a node with room in its blocks, and on one without a block.
    fn requests(&self, sheet: &mut Sheet) -> Result<()> {
        let counted = Counted::new(self.cluster.store());
        let (store, boot_id) = (Store::new(counted.clone()), boot_id()?);
        let (mut affine, mut claim, mut claim_ms, mut listed) = (vec![], vec![], vec![], 0);
        for index in 0..self.effort.samples(20) {
            let mut pod = records::assignment(&self.pools, &format!("{}r{index}", self.nodes))?;
            counted.take();
            Ipam::new(&store, &records::node_name(0), &boot_id).assign(&pod)?;
            affine.push(counted.take().len() as f64);
            Ipam::new(&store, &records::node_name(0), &boot_id).release(&pod.attachment)?;
            pod.ipv6 = false;
            let late =
                Ipam::new(&store, &format!("{UNREGISTERED}{}-{index}", self.nodes), &boot_id);
            counted.take();
            let began = Instant::now();
            late.assign(&pod)?;
            claim_ms.push(began.elapsed().as_secs_f64() * 1e3);
            let requests = counted.take();
            listed = requests.iter().map(|request| request.records).max().unwrap_or(0).max(listed);
            claim.push(requests.len() as f64);
            late.release(&pod.attachment)?;
        }
        counted.take();
        Ipam::new(&store, &records::node_name(0), &boot_id).tend_blocks()?;
        let read: usize = counted.take().iter().map(|request| request.bytes).sum();
        self.record(sheet, UPKEEP, AGENT, Unit::Kibibytes, vec![read as f64 / 1024.0]);
        self.record(sheet, AFFINE, PLUGIN, Unit::Count, affine);
        self.record(sheet, CLAIM, PLUGIN, Unit::Count, claim);
        self.record(
            sheet,
            "time for an address of a new block",
            PLUGIN,
            Unit::Milliseconds,
            claim_ms,
        );
        self.record(
            sheet,
            "records in the longest answer",
            PLUGIN,
            Unit::Count,
            vec![listed as f64],
        );
        self.settle()
    }

    /// The whole plugin, on a real node whose agent is at work.
    fn adds(&self, sheet: &mut Sheet) -> Result<()> {
        let member = &self.cluster.nodes()[0];
        let network = self.network(member);
        let pod = member.sandbox(&format!("pod-{}", self.nodes));
        let execute = |verb| {
            let invocation = member.invocation(verb, &pod, &network);
            member.enter(|| Execution::of(&invocation))
        };
        let mut adds = Vec::new();
        // The first one may load programs.
        for _ in 0..=self.effort.samples(20) {
            adds.push(execute("ADD")?);
            execute("DEL")?;
        }
        let wall = adds[1..].iter().map(Execution::wall_ms).collect();
        let cpu = adds[1..].iter().map(Execution::cpu_ms).collect();
        self.record(sheet, ADD, PLUGIN, Unit::Milliseconds, wall);
        self.record(sheet, &format!("{CPU} of {ADD}"), PLUGIN, Unit::Milliseconds, cpu);
        self.settle()
    }

    fn network(&self, member: &Member) -> Value {
        let mut network = member.network("Always");
        let pools =
            self.pools.iter().map(|pool| json!({"cidr": pool.cidr, "vxlan_mode": "Always"}));
        network["ipam"]["pools"] = pools.collect();
        network
    }

    /// As an ADD does whose configuration has another mode.
    fn set_mode(&mut self, encapsulation: Encapsulation) -> Result<()> {
        self.pools = pools(encapsulation)?;
        let store = self.cluster.store();
        records::make_pod(&store, &self.pools, &records::node_name(0), "mode").map(drop)
    }

    /// What each agent uses while `work` is done.
    fn used(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<usage::Used>> {
        let look = || self.cluster.nodes().iter().map(Usage::of).collect::<Result<Vec<_>>>();
        let before = look()?;
        work()?;
        Ok(look()?.iter().zip(&before).map(|(after, before)| after.since(before)).collect())
    }

    /// Waits until no agent that runs hears or does anything for a moment.
    fn settle(&self) -> Result<()> {
        let running = || self.cluster.nodes().iter().filter(|member| member.agent_pid().is_some());
        let look = || running().map(Usage::of).collect::<Result<Vec<_>>>();
        let deadline = Instant::now() + PATIENCE;
        let mut before = look()?;
        loop {
            thread::sleep(Duration::from_millis(400));
            let after = look()?;
            let quiet = after.iter().zip(&before).all(|(after, before)| {
                let used = after.since(before);
                used.cpu_ms < 30.0 && used.received_kib < 4.0
            });
            if quiet {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agents do not come to rest");
            before = after;
        }
    }
}

fn blocks(store: &Store) -> Result<Vec<Placement>> {
    let (_, changes) = store.survey(Topic::Blocks)?;
    let facts = changes.into_iter().filter_map(|change| change.fact);
    let placements = facts.filter_map(|fact| match fact {
        Ok(Fact::Block(placement)) => Some(Ok(placement)),
        Ok(_) => None,
        Err(error) => Some(Err(error.into())),
    });
    placements.collect()
}

/// Upkeep in each of the spans that are measured.
fn often() -> Value {
    json!({"log_level": "warning", "upkeep_interval_seconds": 30})
}

/// Takes away what an agent has made in the calling thread's namespace.
fn forget_routes() {
    for family in ["-4", "-6"] {
        node::run(&["ip", family, "route", "flush", "proto", "78"]);
    }
    if node::run(&["ip", "-o", "link"]).contains(&format!(" {OVERLAY_DEVICE}:")) {
        node::run(&["ip", "link", "del", OVERLAY_DEVICE]);
    }
}

fn wait_for_route(member: &Member, address: IpAddr) -> Result<Instant> {
    let overlay = member.link(OVERLAY_DEVICE).context("no overlay device")?.index;
    let deadline = Instant::now() + PATIENCE;
    member.netlink(async |netlink| {
        loop {
            let hop = netlink.next_hop_to(address).await?;
            if hop.is_some_and(|(_, ifindex)| ifindex == overlay) {
                return Ok(Instant::now());
            }
            ensure!(Instant::now() < deadline, "no route to {address} on {}", member.name());
            thread::sleep(Duration::from_millis(1));
        }
    })
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < deadline, "not so in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
