//! `margayctl datapath unload`: pods go on by the host's stack, and programs, links and pins go.

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use margay::dataplane;
use margay::error::chain;
use margay::mtu::ELSEWHERE;
use margay::netlink::Netlink;
use margay::upkeep;
use serde::Serialize;

use crate::commands::node::is_recent;
use crate::doctor::ask;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, BAD, Format, GOOD, Report};

/// Hands every pod over to the host's stack, and takes programs, links and pins away
///
/// Pods go on: the host answers their ARP by proxy_arp, as with "dataplane": "linux", and routes to them exist anyway. They
/// keep to the stack until they are made anew; new pods get what their network's configuration says.
#[derive(Debug, Args)]
pub(crate) struct Unload {
    /// Go on though an agent runs, or pods would be left without an answer to their ARP
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(unload: &Unload, node: &Node, format: Format) -> Result<ExitCode, Failure> {
    if !unload.force {
        refuse_if_harmful(node).await?;
    }
    let before = pods(node, dataplane::EBPF)?;
    let unloaded = match node.upkeep(upkeep::DEFAULT_GRACE)?.unload().await {
        Ok(report) => report.into(),
        // The last step comes after the pods', and what became of them is in their records.
        Err(error) => {
            let mut handed_over = pods(node, dataplane::LINUX)?;
            handed_over.retain(|pod| before.contains(pod));
            if handed_over.is_empty() {
                return Err(error.into());
            }
            let failed = vec![format!("what is the node's: {}", chain(&error))];
            Unloaded { handed_over, failed, ..Unloaded::default() }
        }
    };
    output::show(&unloaded, format)?;
    let is_done = unloaded.busy.is_empty() && unloaded.failed.is_empty();
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The pods of this node that one of the dataplanes carries.
fn pods(node: &Node, dataplane: &str) -> Result<Vec<String>, Failure> {
    let endpoints = node.store()?.endpoints_on(&node.settings()?.nodename)?;
    let endpoints = endpoints.into_iter().filter(|endpoint| endpoint.dataplane == dataplane);
    Ok(endpoints.map(|endpoint| endpoint.attachment.to_string()).collect())
}

/// An agent would put back what goes; and without a default route `proxy_arp` answers nobody.
async fn refuse_if_harmful(node: &Node) -> Result<(), Failure> {
    let (store, nodename) = (node.store()?, node.settings()?.nodename);
    if let Some(agent) = &node.agent {
        let answers = |address| ask(address, "/healthz").is_ok();
        if agent.metrics_address.is_some_and(answers) {
            return Err(Failure::Harmful {
                reason: "margay-agent runs, and would put programs back".to_owned(),
                hint: "systemctl stop margay-agent first, or --force",
            });
        }
        // One that serves no metrics, or hangs, writes its heartbeat all the same.
        let mut heartbeats = store.heartbeats()?.into_iter();
        if heartbeats.any(|(beat, _)| beat.node == nodename && is_recent(&beat)) {
            return Err(Failure::Harmful {
                reason: "margay-agent was heard of within two minutes, and would put programs back"
                    .to_owned(),
                hint: "systemctl stop margay-agent first; where it is stopped, wait for two minutes, \
                       or --force",
            });
        }
    }
    let endpoints = store.endpoints_on(&nodename)?;
    let has_pods = endpoints.iter().any(|endpoint| {
        endpoint.dataplane == dataplane::EBPF && endpoint.ips.iter().any(|ip| ip.is_ipv4())
    });
    if has_pods && Netlink::open()?.route_to(ELSEWHERE[0]).await?.is_none() {
        return Err(Failure::Harmful {
            reason: "the host has no default route, without which proxy_arp answers no pod"
                .to_owned(),
            hint: "add one first, or --force, and pods without programs stay without a gateway",
        });
    }
    Ok(())
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Unloaded {
    /// Pods that the host's stack carries from here on.
    handed_over: Vec<String>,
    /// Pods that a verb was at work on.
    busy: Vec<String>,
    /// Other interfaces that had programs.
    interfaces: Vec<String>,
    /// Below the root of the pins.
    pins: Vec<String>,
    failed: Vec<String>,
}

impl From<upkeep::Unloaded> for Unloaded {
    fn from(report: upkeep::Unloaded) -> Self {
        let failed = report.failed.into_iter();
        Self {
            handed_over: report.handed_over.iter().map(ToString::to_string).collect(),
            busy: report.busy.iter().map(ToString::to_string).collect(),
            interfaces: report.interfaces,
            pins: report.pins.iter().map(|path| path.display().to_string()).collect(),
            failed: failed.map(|(what, error)| format!("{what}: {}", chain(&error))).collect(),
        }
    }
}

impl Report for Unloaded {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for pod in &self.handed_over {
            writeln!(out, "{GOOD}handed over{GOOD:#} {pod}")?;
        }
        for name in &self.interfaces {
            writeln!(out, "{GOOD}detached{GOOD:#}    from {name}")?;
        }
        for pin in &self.pins {
            writeln!(out, "{GOOD}removed{GOOD:#}     pins of ABI version {pin}")?;
        }
        for pod in &self.busy {
            writeln!(out, "{BAD}left{BAD:#}        {pod}: a verb is at work on it; try again")?;
        }
        self.failed.iter().try_for_each(|failed| writeln!(out, "{BAD}failed{BAD:#}      {failed}"))
    }
}
