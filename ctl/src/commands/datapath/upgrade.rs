//! `margayctl datapath upgrade`: every pod gets the programs of this release, in place.

use std::fmt;
use std::process::ExitCode;

use clap::Args;
use margay::error::chain;
use margay::naming;
use margay::netlink::Netlink;
use margay::upkeep::DEFAULT_GRACE;
use margay_datapath::{Datapath, PinnedBuild};
use serde::Serialize;

use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, BAD, Format, GOOD, Report};

/// Gives every pod the programs of this release, each in one exchange, so that no packet passes without
///
/// What is missing of a pod is put back on the way. New pods get the same programs from then on. Programs of the node itself,
/// between nodes, are the agent's: restart it.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(
    upgrade: &Upgrade,
    node: &Node,
    format: Format,
) -> Result<ExitCode, Failure> {
    let before = Interfaces::of(node).await?;
    let mut upgraded = Upgraded {
        build: Datapath::embedded_build()?,
        is_dry_run: upgrade.dry_run,
        to_replace: before.others,
        ..Upgraded::default()
    };
    if !upgrade.dry_run {
        let upkeep = node.upkeep(DEFAULT_GRACE)?;
        upkeep.make_current()?;
        let report = upkeep.reattach().await?;
        upgraded.pods = report.pods;
        upgraded.replaced = report.replaced.iter().map(ToString::to_string).collect();
        upgraded.attached = report.attached.iter().map(ToString::to_string).collect();
        let failed = report.failed.into_iter();
        upgraded.failed =
            failed.map(|(what, error)| format!("{what}: {}", chain(&error))).collect();
        upgraded.to_replace = Interfaces::of(node).await?.others;
    }
    output::show(&upgraded, format)?;
    let is_done = upgraded.is_dry_run || upgraded.to_replace.is_empty();
    Ok(if is_done && upgraded.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The host veths that run other programs than this release's.
struct Interfaces {
    others: Vec<String>,
}

impl Interfaces {
    async fn of(node: &Node) -> Result<Self, Failure> {
        let builds = Datapath::pinned_builds(&node.settings()?.paths.bpffs_root)?;
        let ours = Datapath::embedded_build()?;
        let ours: Vec<&PinnedBuild> = builds.iter().filter(|build| build.build == ours).collect();
        let netlink = Netlink::open()?;
        let mut others = Vec::new();
        for link in netlink.links().await? {
            if !naming::is_of_a_pod(&link.name) {
                continue;
            }
            let attached = Datapath::programs_in_use(netlink.handle(), link.index).await;
            let attached = attached.unwrap_or_default();
            let is_ours = |id| ours.iter().any(|build| build.programs.contains(id));
            let is_known = |id| builds.iter().any(|build| build.programs.contains(id));
            if !attached.is_empty() && !attached.iter().filter(|id| is_known(*id)).all(is_ours) {
                others.push(link.name);
            }
        }
        Ok(Self { others })
    }
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Upgraded {
    /// The build that pods get.
    build: &'static str,
    is_dry_run: bool,
    /// Pods that were looked at.
    pods: usize,
    /// Pods whose programs were replaced.
    replaced: Vec<String>,
    /// Pods that had none.
    attached: Vec<String>,
    /// Interfaces that run other programs: yet, or still.
    to_replace: Vec<String>,
    failed: Vec<String>,
}

impl Report for Upgraded {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Self { build, pods, replaced, attached, to_replace, failed, .. } = self;
        if self.is_dry_run {
            writeln!(out, "{} interfaces would get build {build}", to_replace.len())?;
            return to_replace.iter().try_for_each(|name| writeln!(out, "  {name}"));
        }
        writeln!(
            out,
            "{GOOD}build {build}{GOOD:#}: {pods} pods looked at, {} replaced, {} attached anew",
            replaced.len(),
            attached.len()
        )?;
        for name in to_replace {
            writeln!(
                out,
                "{BAD}left{BAD:#} {name}: a verb is at work on it, or it is of a later release"
            )?;
        }
        failed.iter().try_for_each(|failed| writeln!(out, "{BAD}failed{BAD:#} {failed}"))
    }
}
