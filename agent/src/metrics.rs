//! What the agent knows, in numbers, and whether it does its work.
//!
//! The agent's own events are counted as they happen. What is in the kernel's maps is read when somebody
//! asks.

use std::collections::BTreeMap;
use std::fmt;
use std::iter;
use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use margay::error::chain;
use margay_datapath::{Datapath, DatapathError, MapError};
use margay_datastore::{BackendError, Pool};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::liveness::Liveness;
use crate::remote::RemoteTable;
use crate::topology::Topology;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<i64, AtomicI64>>;
type Counters = Family<Labels, Counter<u64, AtomicU64>>;

/// How long the agent may be at one thing before it counts as stuck.
const STUCK: Duration = Duration::from_secs(180);

/// The agent's numbers; clones are the same.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    bpffs_root: PathBuf,
    state: Mutex<State>,
    packets: Counters,
    bytes: Counters,
    map_entries: Gauges,
    pool_addresses: Gauges,
    pool_capacity: Gauges,
    blocks: Gauges,
    nodes: Gauges,
    routes: Gauge,
    unreachable: Gauge,
    passes: Counters,
    route_changes: Counter,
    requests: Family<Labels, Histogram, fn() -> Histogram>,
    request_errors: Counters,
    upkeep: Counters,
    upkeep_failures: Counters,
}

/// What health goes by.
struct State {
    /// When the agent's loop last turned.
    turned: Instant,
    /// How the last pass went; `None` before the first.
    last_pass: Option<Result<(), String>>,
    /// Addresses that this node has in its own blocks, by block.
    used: BTreeMap<IpNetwork, usize>,
    /// Addresses that it has borrowed, by pool; every pool is there.
    borrowed: BTreeMap<IpNetwork, usize>,
}

impl Metrics {
    /// All at zero. The node's maps are below `bpffs_root`.
    #[must_use]
    pub fn new(bpffs_root: PathBuf) -> Self {
        let mut registry = Registry::with_prefix("margay");
        let mut inner = Inner {
            registry: Registry::default(),
            bpffs_root,
            state: Mutex::new(State {
                turned: Instant::now(),
                last_pass: None,
                used: BTreeMap::new(),
                borrowed: BTreeMap::new(),
            }),
            packets: Counters::default(),
            bytes: Counters::default(),
            map_entries: Gauges::default(),
            pool_addresses: Gauges::default(),
            pool_capacity: Gauges::default(),
            blocks: Gauges::default(),
            nodes: Gauges::default(),
            routes: Gauge::default(),
            unreachable: Gauge::default(),
            passes: Counters::default(),
            route_changes: Counter::default(),
            requests: Family::new_with_constructor(request_histogram),
            request_errors: Counters::default(),
            upkeep: Counters::default(),
            upkeep_failures: Counters::default(),
        };
        inner.register(&mut registry);
        inner.registry = registry;
        Self { inner: Arc::new(inner) }
    }

    /// Notes a request to the datastore.
    pub fn note_request(
        &self,
        operation: &'static str,
        elapsed: Duration,
        error: Option<&BackendError>,
    ) {
        let labels = vec![("operation", operation.to_owned())];
        self.inner.requests.get_or_create(&labels).observe(elapsed.as_secs_f64());
        // That somebody else was faster is how compare-and-swap works.
        let is_failure = |error: &&BackendError| {
            !matches!(
                error,
                BackendError::Exists { .. }
                    | BackendError::Conflict { .. }
                    | BackendError::NotFound { .. }
            )
        };
        if error.filter(is_failure).is_some() {
            self.inner.request_errors.get_or_create(&labels).inc();
        }
    }

    /// Notes how many things upkeep has put right.
    pub fn note_upkeep(&self, what: &'static str, count: usize) {
        let labels = vec![("what", what.to_owned())];
        self.inner.upkeep.get_or_create(&labels).inc_by(count as u64);
    }

    /// Notes how many a part of upkeep could not.
    pub fn note_upkeep_failure(&self, part: &'static str, count: usize) {
        let labels = vec![("part", part.to_owned())];
        self.inner.upkeep_failures.get_or_create(&labels).inc_by(count as u64);
    }

    /// Notes that the agent's loop turns.
    pub fn note_turn(&self) {
        self.state().turned = Instant::now();
    }

    /// Notes how a pass over the routes went, and how many it changed.
    pub fn note_pass(&self, outcome: Result<(), String>, changed: usize, routes: usize) {
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        self.inner.passes.get_or_create(&vec![("result", result.to_owned())]).inc();
        self.inner.route_changes.inc_by(changed as u64);
        self.inner.routes.set(number(routes));
        self.state().last_pass = Some(outcome);
    }

    /// Notes what the datastore says.
    pub fn note_topology(&self, own: &str, topology: &Topology, table: &RemoteTable) {
        self.inner.unreachable.set(number(table.problems.len()));
        for gauges in [&self.inner.pool_capacity, &self.inner.blocks] {
            gauges.clear();
        }
        let mut borrowed = BTreeMap::new();
        for pool in topology.pools.values() {
            let labels = vec![("pool", pool.cidr.to_string())];
            let (mut own_blocks, mut other_blocks, mut borrowed_here) = (0, 0, 0);
            for block in topology.blocks.values().filter(|block| holds(pool, &block.cidr.ip())) {
                borrowed_here += block.borrowed.values().filter(|node| *node == own).count();
                *(if block.node == own { &mut own_blocks } else { &mut other_blocks }) += 1;
            }
            borrowed.insert(pool.cidr, borrowed_here);
            let capacity = i64::try_from(pool.capacity()).unwrap_or(i64::MAX);
            self.inner.pool_capacity.get_or_create(&labels).set(capacity);
            for (node, count) in [("own", own_blocks), ("other", other_blocks)] {
                let mut labels = labels.clone();
                labels.push(("node", node.to_owned()));
                self.inner.blocks.get_or_create(&labels).set(count);
            }
        }
        let before = mem::replace(&mut self.state().borrowed, borrowed);
        self.count_addresses(before.into_keys());
    }

    /// Notes how many addresses of its own blocks this node has, by block.
    pub fn note_used(&self, used: BTreeMap<IpNetwork, usize>) {
        self.state().used = used;
        self.count_addresses(iter::empty());
    }

    /// Whoever asks meanwhile misses none of the pools that there still are.
    fn count_addresses(&self, pools_before: impl Iterator<Item = IpNetwork>) {
        let state = self.state();
        for gone in pools_before.filter(|pool| !state.borrowed.contains_key(pool)) {
            self.inner.pool_addresses.remove(&vec![("pool", gone.to_string())]);
        }
        for (pool, borrowed) in &state.borrowed {
            let of_pool = state.used.iter().filter(|(block, _)| pool.contains(block.ip()));
            let addresses = borrowed + of_pool.map(|(_, used)| used).sum::<usize>();
            let labels = vec![("pool", pool.to_string())];
            self.inner.pool_addresses.get_or_create(&labels).set(number(addresses));
        }
    }

    /// Notes which of the nodes are heard of.
    pub fn note_nodes(&self, topology: &Topology, liveness: &Liveness) {
        let nodes = topology.nodes.values();
        let heard = nodes.filter(|node| liveness.is_heard(&node.name)).count();
        for (state, count) in [("heard", heard), ("silent", topology.nodes.len() - heard)] {
            let labels = vec![("state", state.to_owned())];
            self.inner.nodes.get_or_create(&labels).set(number(count));
        }
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// Never in practice: text is written to memory.
    pub fn text(&self) -> Result<String, fmt::Error> {
        if let Err(error) = self.read_maps() {
            tracing::warn!(error = chain(&error), "the maps are missing among the metrics");
        }
        let mut text = String::new();
        encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }

    /// Whether the agent is alive; if not, why.
    ///
    /// # Errors
    /// With the reason, if it is not.
    pub fn health(&self) -> Result<(), String> {
        let stuck = self.state().turned.elapsed();
        match stuck > STUCK {
            true => Err(format!("at one thing for {} s", stuck.as_secs())),
            false => Ok(()),
        }
    }

    /// Whether this node's routes are as they should be; if not, why.
    ///
    /// # Errors
    /// With the reason, if they are not.
    pub fn readiness(&self) -> Result<(), String> {
        let not_yet = || Err("the datastore has not been read yet".to_owned());
        self.state().last_pass.clone().unwrap_or_else(not_yet)
    }

    /// Reads what the programs have counted, and how full the maps are. Without programs, nothing.
    fn read_maps(&self) -> Result<(), MapsError> {
        // Every build shares the maps of its ABI version.
        let Some(datapath) = Datapath::open_builds(&self.inner.bpffs_root)?.pop() else {
            return Ok(());
        };
        for (counter, traffic) in datapath.stats()? {
            self.set_traffic(counter.name(), traffic.packets, traffic.bytes);
        }
        let pods = datapath.pods().entries()?;
        let of_ipv4 = pods.keys().filter(|address| address.is_ipv4()).count();
        let flows = datapath.flows().count()?;
        for (map, entries) in
            [("pods_v4", of_ipv4), ("pods_v6", pods.len() - of_ipv4), ("flows", flows)]
        {
            self.set_entries(map, entries);
        }
        Ok(())
    }

    fn set_traffic(&self, verdict: &str, packets: u64, bytes: u64) {
        let labels = vec![("verdict", verdict.to_owned())];
        for (counters, value) in [(&self.inner.packets, packets), (&self.inner.bytes, bytes)] {
            counters.get_or_create(&labels).inner().store(value, Ordering::Relaxed);
        }
    }

    fn set_entries(&self, map: &str, entries: usize) {
        let labels = vec![("map", map.to_owned())];
        self.inner.map_entries.get_or_create(&labels).set(number(entries));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why maps cannot be read.
#[derive(Debug, thiserror::Error)]
enum MapsError {
    #[error(transparent)]
    Open(#[from] DatapathError),
    #[error(transparent)]
    Read(#[from] MapError),
}

impl Inner {
    fn register(&self, registry: &mut Registry) {
        let mut counters = |name: &str, help: &str, metric: &Counters| {
            registry.register(name, help, metric.clone());
        };
        counters("packets", "Packets by what became of them", &self.packets);
        counters("bytes", "Bytes by what became of them", &self.bytes);
        counters("passes", "Times the routes were gone over, by result", &self.passes);
        counters("datastore_errors", "Requests to the datastore that failed", &self.request_errors);
        counters("upkeep", "What upkeep of the node has put right", &self.upkeep);
        counters("upkeep_failures", "What upkeep could not put right", &self.upkeep_failures);
        let mut gauges = |name: &str, help: &str, metric: &Gauges| {
            registry.register(name, help, metric.clone());
        };
        gauges("map_entries", "Entries of a map", &self.map_entries);
        gauges("pool_addresses", "Addresses of a pool that this node has", &self.pool_addresses);
        gauges("pool_capacity", "Addresses that a pool can give out", &self.pool_capacity);
        gauges("blocks", "Blocks of a pool, of this node and of others", &self.blocks);
        gauges("nodes", "Nodes by whether their agent is heard of", &self.nodes);
        registry.register("remote_routes", "Routes that the agent has made", self.routes.clone());
        registry.register(
            "unreachable",
            "Reasons why pods of other nodes cannot be reached",
            self.unreachable.clone(),
        );
        registry.register(
            "route_changes",
            "Routes that the agent has set or deleted",
            self.route_changes.clone(),
        );
        registry.register_with_unit(
            "datastore_request",
            "Time of requests to the datastore",
            Unit::Seconds,
            self.requests.clone(),
        );
    }
}

fn request_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 4.0, 9))
}

fn holds(pool: &Pool, ip: &std::net::IpAddr) -> bool {
    pool.cidr.contains(*ip)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use margay_datastore::Placement;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(PathBuf::from("/nonexistent/margay"))
    }

    #[test]
    fn it_is_ready_after_a_pass_that_went_well_and_not_after_another() {
        let metrics = metrics();
        assert!(metrics.readiness().unwrap_err().contains("not been read"));

        metrics.note_pass(Ok(()), 3, 3);
        assert_eq!(metrics.readiness(), Ok(()));
        metrics.note_pass(Err("no route".into()), 0, 3);
        assert_eq!(metrics.readiness(), Err("no route".into()));

        let text = metrics.text().unwrap();
        assert!(text.contains("margay_passes_total{result=\"failed\"} 1"), "{text}");
        assert!(text.contains("margay_route_changes_total 3"), "{text}");
    }

    #[test]
    fn a_node_counts_the_addresses_that_it_has_in_its_own_blocks_and_in_those_of_others() {
        let metrics = metrics();
        let [own, lending, empty]: [IpNetwork; 3] =
            ["10.0.0.0/26", "10.0.0.64/26", "10.1.0.0/16"].map(|cidr| cidr.parse().unwrap());
        let pool = Pool::new("10.0.0.0/16".parse().unwrap());
        let mut topology = Topology::default();
        for pool in [pool.clone(), Pool::new(empty)] {
            topology.pools.insert(pool.cidr.to_string(), pool);
        }
        for (cidr, node, borrowed) in
            [(own, "a", ("10.0.0.1", "b")), (lending, "b", ("10.0.0.65", "a"))]
        {
            let borrowed = [(borrowed.0.parse().unwrap(), borrowed.1.to_owned())].into();
            let block = Placement { cidr, node: node.to_owned(), borrowed };
            topology.blocks.insert(cidr.to_string(), block);
        }
        let has = |line: &str| {
            let text = metrics.text().unwrap();
            assert!(text.contains(line), "{line}: {text}");
        };

        metrics.note_topology("a", &topology, &RemoteTable::default());
        has("margay_pool_addresses{pool=\"10.0.0.0/16\"} 1");
        metrics.note_used([(own, 3)].into());

        has("margay_pool_addresses{pool=\"10.0.0.0/16\"} 4");
        has("margay_pool_addresses{pool=\"10.1.0.0/16\"} 0");
        has("margay_blocks{pool=\"10.0.0.0/16\",node=\"own\"} 1");
        has("margay_blocks{pool=\"10.0.0.0/16\",node=\"other\"} 1");
        topology.pools.remove(&empty.to_string());
        metrics.note_topology("a", &topology, &RemoteTable::default());
        has("margay_pool_addresses{pool=\"10.0.0.0/16\"} 4");
        assert!(!metrics.text().unwrap().contains("10.1.0.0"));
    }

    /// Name, type and labels.
    type Described = (String, String, BTreeSet<String>);

    #[test]
    fn what_is_served_is_what_the_table_says() {
        let metrics = metrics();
        let busy = BackendError::Busy { operation: "update".into(), source: "silence".into() };
        metrics.note_request("update", Duration::ZERO, Some(&busy));
        metrics.note_pass(Ok(()), 1, 1);
        metrics.note_upkeep("reclaimed", 1);
        metrics.note_upkeep_failure("reclaim", 1);
        let mut topology = Topology::default();
        topology.pools.insert("p".into(), Pool::new("10.0.0.0/16".parse().unwrap()));
        metrics.note_topology("a", &topology, &RemoteTable::default());
        metrics.note_nodes(&topology, &Liveness::default());
        metrics.set_traffic("direct_v4", 1, 1);
        metrics.set_entries("flows", 1);

        let text = metrics.text().unwrap();

        let documented = documented(include_str!("../../docs/agent.md"));
        assert_eq!(served(&text), documented, "{text}");
    }

    fn documented(page: &str) -> BTreeSet<Described> {
        let (_, table) = page.split_once("| metric | type | labels | |\n").expect("a table");
        let mut described = BTreeSet::new();
        for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, metrics, kind, labels, ..] = cells[..] else { panic!("{row}") };
            for metric in quoted(metrics) {
                described.insert((metric, kind.to_owned(), quoted(labels)));
            }
        }
        described
    }

    /// What stands between backticks.
    fn quoted(cell: &str) -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn served(text: &str) -> BTreeSet<Described> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let described = |(family, kind): (&str, &str)| {
            let (name, suffix) = match kind {
                "counter" => (format!("{family}_total"), ""),
                "histogram" => (family.to_owned(), "_count"),
                _ => (family.to_owned(), ""),
            };
            let sample = text.lines().find_map(|line| {
                let labels = line.strip_prefix(&format!("{name}{suffix}"))?.split(' ').next()?;
                (labels.is_empty() || labels.starts_with('{')).then_some(labels)
            });
            let sample = sample.unwrap_or_else(|| panic!("no sample of {name}"));
            let labels = sample.trim_matches(['{', '}']).split(',').filter(|pair| !pair.is_empty());
            let labels = labels.map(|pair| pair.split('=').next().unwrap().to_owned()).collect();
            (name, kind.to_owned(), labels)
        };
        types.map(described).collect()
    }

    #[test]
    fn losing_a_race_is_no_error_of_the_datastore() {
        let metrics = metrics();
        let key = || "nodes/a".to_owned();
        metrics.note_request(
            "update",
            Duration::ZERO,
            Some(&BackendError::Conflict { key: key() }),
        );
        assert!(!metrics.text().unwrap().contains("datastore_errors_total{"));

        let busy = BackendError::Busy { operation: "update".into(), source: "silence".into() };
        metrics.note_request("update", Duration::ZERO, Some(&busy));

        let text = metrics.text().unwrap();
        assert!(text.contains("margay_datastore_errors_total{operation=\"update\"} 1"), "{text}");
        let count = "margay_datastore_request_seconds_count{operation=\"update\"} 2";
        assert!(text.contains(count), "{text}");
    }
}
