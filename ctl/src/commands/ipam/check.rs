//! `margayctl ipam check`: what is found twice, some time apart, and is nothing that a verb is at work on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use margay::lock::Lock;
use margay::netlink::{LinkInfo, Netlink};
use margay::{dataplane, error, ipam, naming};
use margay_datastore::Attachment;
use serde::Serialize;

use super::contradictions::{self, Facts, Finding, Gravity};
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, BAD, BOLD, DIM, Format, GOOD, Report, WARNING};

/// `ipam check`. Exit code: 0 if nothing was found, 10 for warnings, 20 for errors.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Time between the two looks by which something must be found, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = crate::arguments::seconds)]
    settle: Duration,
}

pub(super) async fn run(check: &Check, node: &Node, format: Format) -> Result<ExitCode, Failure> {
    let (mut found, unseen) = look(node).await?;
    if !found.is_empty() {
        tokio::time::sleep(check.settle).await;
        let (again, _) = look(node).await?;
        found.retain(|finding| again.contains(finding));
    }
    let report = Contradictions::of(found, unseen);
    output::show(&report, format)?;
    Ok(ExitCode::from(report.verdict.exit_code()))
}

/// One look; without what a verb on this node is at work on.
async fn look(node: &Node) -> Result<(BTreeSet<Finding>, Vec<String>), Failure> {
    let settings = node.settings()?;
    let mut unseen = Vec::new();
    let store = node.store()?;
    let pools = store.pools()?;
    let ledger = store.ledger()?;
    let misplaced = store.misplaced_blocks()?;
    let map_entries = match dataplane::pods(&settings.paths.bpffs_root) {
        Ok(Some(pods)) => Some(pods.entries()?),
        Ok(None) => None,
        Err(failed) => {
            unseen.push(error::chain(&failed));
            None
        }
    };
    let links = Netlink::open()?.links().await?;
    let facts = Facts {
        ledger,
        misplaced,
        pools,
        map_entries,
        attachments: links.iter().filter_map(attachment).collect(),
        links: links.into_iter().map(|link| (link.name, link.index)).collect(),
        nodename: settings.nodename,
        boot_id: ipam::boot_id()?,
        networks: networks(node),
    };
    let mut found = contradictions::find(&facts);
    let run_dir = &settings.paths.run_dir;
    found.retain(|finding| {
        let attachment = finding.attachment.as_ref();
        attachment.is_none_or(|of| !Lock::is_held(run_dir, &naming::host_veth(of)))
    });
    Ok((found, unseen))
}

fn attachment(link: &LinkInfo) -> Option<(u32, Attachment)> {
    Some((link.index, naming::attachment_of_alias(link.alias.as_deref()?)?))
}

/// The networks that margay makes the interfaces of, and whether it gives their addresses as well.
fn networks(node: &Node) -> BTreeMap<String, bool> {
    node.whole_networks().map(|conf| (conf.name.clone(), conf.ipam.pools().is_some())).collect()
}

/// By the gravest of what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Consistent,
    Warnings,
    Errors,
}

impl Verdict {
    /// Those of `doctor`.
    fn exit_code(self) -> u8 {
        match self {
            Self::Consistent => 0,
            Self::Warnings => 10,
            Self::Errors => 20,
        }
    }
}

/// What `ipam check` shows.
#[derive(Debug, Serialize)]
struct Contradictions {
    verdict: Verdict,
    findings: Vec<Finding>,
    /// What could not be looked at, and why.
    unseen: Vec<String>,
}

impl Contradictions {
    fn of(found: BTreeSet<Finding>, unseen: Vec<String>) -> Self {
        let verdict = match found.iter().map(|finding| finding.gravity).min() {
            None => Verdict::Consistent,
            Some(Gravity::Warning) => Verdict::Warnings,
            Some(Gravity::Error) => Verdict::Errors,
        };
        Self { verdict, findings: found.into_iter().collect(), unseen }
    }
}

impl Report for Contradictions {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for Finding { gravity, kind, text, hint, .. } in &self.findings {
            let (style, word) = match gravity {
                Gravity::Error => (BAD, "error"),
                Gravity::Warning => (WARNING, "warning"),
            };
            let text = output::printable(text);
            writeln!(out, "{style}{word}{style:#} {BOLD}{kind}{BOLD:#}: {text}")?;
            writeln!(out, "  {DIM}{hint}{DIM:#}")?;
        }
        for unseen in &self.unseen {
            writeln!(out, "{WARNING}not seen:{WARNING:#} {unseen}")?;
        }
        match self.findings.len() {
            0 => writeln!(out, "{GOOD}nothing contradicts itself{GOOD:#}"),
            found => writeln!(out, "{found} found"),
        }
    }
}
