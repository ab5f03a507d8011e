//! The agent from its start to its end.

use std::io;
use std::time::Duration;

use margay::config::AgentConf;
use margay::error::chain;
use margay::ipam::{self, IpamError};
use margay::log;
use margay::netlink::{Netlink, NetlinkError};
use margay_datastore::{Node, Pool, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::configuration::ConfigurationError;
use crate::fast_path::{FastPath, FastPathError, Routes};
use crate::following;
use crate::kernel::{Kernel, KernelError};
use crate::liveness::{self, Liveness};
use crate::measured::Measured;
use crate::metrics::Metrics;
use crate::node::{NodeError, Registrar};
use crate::notify::{self, State};
use crate::overlay::OverlaySettings;
use crate::remote::RemoteTable;
use crate::server;
use crate::topology::{News, Topology};
use crate::underlay::Underlay;
use crate::upkeep;

/// News that wait while the agent is at work.
const BACKLOG: usize = 1024;
/// News that come one after the other are taken together: an ADD in a new block makes several.
const SETTLE: Duration = Duration::from_millis(20);
/// How long after a change of links, addresses or routes they are looked at.
const LOOK_SOON: Duration = Duration::from_millis(300);
/// How often everything is looked at again, whether or not there was news.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long to wait after a pass that did not do all.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Why the agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is refused.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The runtime, or what listens for signals.
    #[error("start")]
    Start(#[source] io::Error),
    /// No netlink socket.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The datastore cannot be opened.
    #[error("open the datastore")]
    Datastore(#[source] Box<IpamError>),
    /// This node could not be registered.
    #[error(transparent)]
    Node(Box<NodeError>),
    /// The kernel would not do something; the rest is done.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The programs know not all ways, which the kernel's routes lead all the same.
    #[error("carry packets past the stack")]
    FastPath(#[from] FastPathError),
    /// A thread of the agent ended in a panic.
    #[error("a thread ended")]
    Thread(#[from] JoinError),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start. Whatever fails later is tried again.
pub fn run(conf: &AgentConf) -> Result<(), AgentError> {
    log::init(&conf.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AgentError::Start)?;
    let outcome = runtime.block_on(serve(conf));
    // A thread that waits for the datastore must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(conf: &AgentConf) -> Result<(), AgentError> {
    let mut end = Termination::listen().map_err(AgentError::Start)?;
    tracing::info!(node = conf.nodename, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let metrics = Metrics::new(conf.paths.bpffs_root.clone());
    start_server(conf, &metrics).await;
    let store = ipam::open_store(&conf.datastore, &conf.paths.database())
        .map_err(|error| AgentError::Datastore(Box::new(error)))?;
    let store = Measured::store(store, metrics.clone());
    let (made, mut maps) = mpsc::channel(1);
    upkeep::start(conf, store.clone(), metrics.clone(), made).map_err(AgentError::Start)?;
    let (send, mut news) = mpsc::channel(BACKLOG);
    following::start(&store, &send);
    drop(send);
    let mut monitor = Netlink::monitor()?;
    let mut agent = Agent::new(conf, store, metrics)?;
    let mut heartbeat = time::interval(liveness::INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without waiting for the datastore, so that a boot does not either: whether the routes are there,
    // `/readyz` says.
    notify::tell(State::Ready);
    loop {
        agent.metrics.note_turn();
        tokio::select! {
            () = end.wait() => break,
            received = news.recv() => match received {
                Some(first) => agent.learn(first, &mut news).await,
                // The followers end with the receiver, never before.
                None => break,
            },
            _ = heartbeat.tick() => agent.exchange_heartbeats().await,
            Some(taught) = maps.recv() => agent.teach(taught).await,
            () = monitor.changed() => agent.look_soon(),
            () = time::sleep_until(agent.next_pass) => agent.pass(true).await,
        }
    }
    notify::tell(State::Stopping);
    tracing::info!("agent ends; routes and devices stay");
    Ok(())
}

/// Metrics are not what the agent is for: without an address to serve them at, it goes on.
async fn start_server(conf: &AgentConf, metrics: &Metrics) {
    let Some(address) = conf.metrics_address else { return };
    match server::listen(address).await {
        Ok(listener) => drop(tokio::spawn(server::serve(listener, metrics.clone()))),
        Err(error) => {
            let error = chain(&error);
            tracing::error!(%address, error, "no metrics: the address cannot be had");
        }
    }
}

/// What the agent has in hand.
struct Agent<'a> {
    conf: &'a AgentConf,
    metrics: Metrics,
    store: Store,
    liveness: Liveness,
    registrar: Registrar,
    netlink: Netlink,
    kernel: Kernel,
    fast_path: FastPath,
    topology: Topology,
    /// This node as it was registered last.
    registered: Option<Registered>,
    /// Maps that no pass has told of the ways yet.
    untaught: Option<upkeep::Taught>,
    /// When to look at everything again, at the latest.
    next_pass: Instant,
}

impl<'a> Agent<'a> {
    fn new(conf: &'a AgentConf, store: Store, metrics: Metrics) -> Result<Self, AgentError> {
        let netlink = Netlink::open()?;
        let settings = OverlaySettings { port: conf.vxlan_port, vni: conf.vxlan_vni };
        Ok(Self {
            conf,
            metrics,
            liveness: Liveness::default(),
            registrar: Registrar::new(store.clone(), &conf.nodename),
            store,
            kernel: Kernel::new(netlink.clone(), settings),
            fast_path: FastPath::new(
                conf.paths.bpffs_root.clone(),
                conf.paths.run_dir.join("load"),
                settings,
                conf.fast_path,
            ),
            netlink,
            topology: Topology::default(),
            registered: None,
            untaught: None,
            next_pass: Instant::now() + LOOK_AGAIN,
        })
    }

    /// Takes in what has come, and what comes right behind it.
    async fn learn(&mut self, first: News, news: &mut mpsc::Receiver<News>) {
        let mut is_news = self.topology.learn(first);
        let settled = Instant::now() + SETTLE;
        while let Ok(Some(more)) = time::timeout_at(settled, news.recv()).await {
            is_news |= self.topology.learn(more);
        }
        if is_news {
            self.pass(false).await;
        }
    }

    /// Has somebody's change to links, addresses or routes looked at, together with those that come with
    /// it. Its own are among them, after which there is nothing to change.
    fn look_soon(&mut self) {
        self.next_pass = self.next_pass.min(Instant::now() + LOOK_SOON);
    }

    /// Tells maps that were just made about the ways, as soon as those are known.
    async fn teach(&mut self, taught: upkeep::Taught) {
        self.untaught = Some(taught);
        self.pass(true).await;
    }

    /// Makes this node what the topology says. `fresh` looks at what there is and does not rely on what
    /// an earlier pass found or made.
    async fn pass(&mut self, fresh: bool) {
        let mut pause = LOOK_AGAIN;
        if self.topology.is_complete() {
            if let Err(error) = self.attempt(fresh || self.untaught.is_some()).await {
                tracing::warn!(error = chain(&error), "tried again");
                self.metrics.note_pass(Err(chain(&error)), 0, self.kernel.route_count());
                pause = TRY_AGAIN;
            }
            self.untaught = None;
        }
        self.next_pass = Instant::now() + pause;
    }

    async fn attempt(&mut self, fresh: bool) -> Result<(), AgentError> {
        let registration = self.register(fresh).await;
        // As others know it, it goes on.
        let Some(Registered { underlay, node, .. }) = &self.registered else { return registration };
        if fresh {
            self.kernel.look_again();
            self.fast_path.look_again();
        }
        // Before any way is another one.
        let earlier = self.fast_path.withdraw_earlier();
        let table = RemoteTable::of(&self.topology, &node.name, &underlay.addresses);
        for problem in &table.problems {
            tracing::debug!(problem, "not reachable");
        }
        self.metrics.note_topology(&node.name, &self.topology, &table);
        let outcome = self.kernel.apply(&table, underlay, node.overlay.as_ref()).await;
        let (changed, routes) = (outcome.changed, self.kernel.route_count());
        match changed {
            0 => tracing::debug!(routes, "pass: nothing to change"),
            _ => tracing::info!(changed, routes, "pass: routes to other nodes"),
        }
        let ways = outcome.routes.as_ref().map(|routes| Routes {
            routes,
            overlay: outcome.overlay,
            overlay_mac: node.overlay.as_ref().map(|end| end.mac).unwrap_or_default(),
            underlay_mtu: underlay.mtu,
        });
        let fast_path = match ways {
            Some(ways) => self.fast_path.apply(&self.netlink, &table, ways).await,
            None => Ok(()),
        };
        registration?;
        outcome.errors.into_iter().next().map_or(Ok(()), Err)?;
        earlier?;
        fast_path?;
        self.metrics.note_pass(Ok(()), changed, routes);
        Ok(())
    }

    /// Has others hear of this node, and hears of them.
    async fn exchange_heartbeats(&mut self) {
        let (store, node) = (self.store.clone(), self.conf.nodename.clone());
        match tokio::task::spawn_blocking(move || liveness::exchange(&store, &node)).await {
            Ok(Ok(heartbeats)) => self.liveness.learn(heartbeats, std::time::Instant::now()),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "no heartbeat"),
            Err(error) => tracing::error!(error = chain(&error), "no heartbeat"),
        }
        self.metrics.note_nodes(&self.topology, &self.liveness);
    }

    /// Registers this node, if it is not as it was registered last. On a thread of its own, since
    /// backends block.
    async fn register(&mut self, fresh: bool) -> Result<(), AgentError> {
        let pools: Vec<Pool> = self.topology.pools.values().cloned().collect();
        let underlay = match &self.registered {
            Some(last) if !fresh && last.pools == pools => return Ok(()),
            _ => Underlay::detect(&self.netlink, &self.conf.node_addresses).await?,
        };
        let registrar = self.registrar.clone();
        let work = move || {
            let node = registrar.register(&underlay, &pools)?;
            Ok(Registered { underlay, pools, node })
        };
        let registered: Result<_, NodeError> = tokio::task::spawn_blocking(work).await?;
        self.registered = Some(registered.map_err(|error| AgentError::Node(Box::new(error)))?);
        Ok(())
    }
}

/// This node as others know it, and what that follows from.
struct Registered {
    underlay: Underlay,
    pools: Vec<Pool>,
    node: Node,
}

/// The signals that end the agent.
struct Termination {
    term: Signal,
    interrupt: Signal,
}

impl Termination {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
