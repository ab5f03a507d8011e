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
use tokio::time::{self, Instant};

use crate::configuration::ConfigurationError;
use crate::following;
use crate::kernel::{Kernel, OverlaySettings};
use crate::node::{NodeError, Registrar};
use crate::remote::RemoteTable;
use crate::topology::{News, Topology};
use crate::underlay::Underlay;

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
    let store = ipam::open_store(&conf.datastore, &conf.paths.database())
        .map_err(|error| AgentError::Datastore(Box::new(error)))?;
    let (send, mut news) = mpsc::channel(BACKLOG);
    following::start(&store, &send);
    drop(send);
    let mut monitor = Netlink::monitor()?;
    let mut agent = Agent::new(conf, store)?;
    loop {
        tokio::select! {
            () = end.wait() => break,
            received = news.recv() => match received {
                Some(first) => agent.learn(first, &mut news).await,
                // The followers end with the receiver, never before.
                None => break,
            },
            () = monitor.changed() => agent.look_soon(),
            () = time::sleep_until(agent.next_pass) => agent.pass(true).await,
        }
    }
    tracing::info!("agent ends; routes and devices stay");
    Ok(())
}

/// What the agent has in hand.
struct Agent<'a> {
    conf: &'a AgentConf,
    registrar: Registrar,
    netlink: Netlink,
    kernel: Kernel,
    topology: Topology,
    /// This node as it was registered last.
    registered: Option<Registered>,
    /// When to look at everything again, at the latest.
    next_pass: Instant,
}

impl<'a> Agent<'a> {
    fn new(conf: &'a AgentConf, store: Store) -> Result<Self, AgentError> {
        let netlink = Netlink::open()?;
        let settings = OverlaySettings { port: conf.vxlan_port, vni: conf.vxlan_vni };
        Ok(Self {
            conf,
            registrar: Registrar::new(store, &conf.nodename),
            kernel: Kernel::new(netlink.clone(), settings),
            netlink,
            topology: Topology::default(),
            registered: None,
            next_pass: Instant::now() + LOOK_AGAIN,
        })
    }

    /// Takes in what has come, and what comes right behind it.
    async fn learn(&mut self, first: News, news: &mut mpsc::Receiver<News>) {
        self.topology.learn(first);
        let settled = Instant::now() + SETTLE;
        while let Ok(Some(more)) = time::timeout_at(settled, news.recv()).await {
            self.topology.learn(more);
        }
        self.pass(false).await;
    }

    /// Has somebody's change to links, addresses or routes looked at, together with those that come with
    /// it. Its own are among them, after which there is nothing to change.
    fn look_soon(&mut self) {
        self.next_pass = self.next_pass.min(Instant::now() + LOOK_SOON);
    }

    /// Makes this node what the topology says. `fresh` looks at what there is and does not rely on what
    /// an earlier pass found or made.
    async fn pass(&mut self, fresh: bool) {
        let mut pause = LOOK_AGAIN;
        if self.topology.is_complete() {
            match self.attempt(fresh).await {
                Ok(true) => {}
                Ok(false) => pause = TRY_AGAIN,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "tried again");
                    pause = TRY_AGAIN;
                }
            }
        }
        self.next_pass = Instant::now() + pause;
    }

    /// Whether everything could be done.
    async fn attempt(&mut self, fresh: bool) -> Result<bool, AgentError> {
        let is_registered = match self.register(fresh).await {
            Ok(()) => true,
            // As others know it, it goes on.
            Err(error) if self.registered.is_some() => {
                tracing::warn!(error = chain(&error), "this node's record stays as it was");
                false
            }
            Err(error) => return Err(error),
        };
        let Some(Registered { underlay, node, .. }) = &self.registered else { return Ok(false) };
        if fresh {
            self.kernel.look_again();
        }
        let table = RemoteTable::of(&self.topology, &node.name, &underlay.addresses);
        for problem in &table.problems {
            tracing::debug!(problem, "not reachable");
        }
        let outcome = self.kernel.apply(&table, underlay, node.overlay.as_ref()).await;
        let (changed, routes) = (outcome.changed, self.kernel.route_count());
        match changed {
            0 => tracing::debug!(routes, "pass: nothing to change"),
            _ => tracing::info!(changed, routes, "pass: routes to other nodes"),
        }
        Ok(is_registered && outcome.errors.is_empty())
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
