//! What can be put right without harm to anybody: by margay's own upkeep, as its agent does it once a minute, and as the
//! next ADD would.
//!
//! Invariants: what a verb is at work on is left to it (upkeep tries locks and does not wait for them); nothing
//! is taken away by one look; no pod gets programs of another build than the one that new pods get.

use std::time::Duration;

use margay::error::chain;
use margay::forwarding;
use margay::nat::Nat;
use margay::upkeep::{Failures, Upkeep};
use margay_abi::ABI_VERSION;
use margay_datapath::Datapath;

use super::catalogue::{BLOCK_MISPLACED, BPFFS_PRIVATE, DELETIONS_PUT_OFF, Kind, NAT_RULES};
use super::dataplane;
use super::finding::Diagnosis;
use super::host;
use crate::failure::Failure;
use crate::node::Node;

/// Between the two looks after which something is taken away.
const GRACE: Duration = Duration::from_millis(500);

/// What was done, and what could not be, each a sentence.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    pub(crate) done: Vec<String>,
    pub(crate) failed: Vec<String>,
}

/// Puts right what was found and can be. What fails keeps nothing else from being said.
pub(crate) async fn mend(node: &Node, diagnosis: &Diagnosis) -> Mended {
    let mut mended = Mended::default();
    let has = |kind: &'static Kind| diagnosis.findings.iter().any(|found| found.kind == kind);
    // A family that no pod needs is left as the operator has it.
    if host::is_forwarding_off(true, &diagnosis.findings) {
        mended.note("the host forwards IPv4 again", forwarding::ensure_ipv4());
    }
    if host::is_forwarding_off(false, &diagnosis.findings) {
        mended.note("the host forwards IPv6 again", forwarding::ensure_ipv6());
    }
    if has(&NAT_RULES) {
        for network in &node.networks {
            let Some(conf) = network.whole() else { continue };
            if network.lacks_pools() {
                mended.failed.push(format!(
                    "the NAT rules of network {} stay as they are: pools that it chooses in the datastore are not known",
                    conf.name
                ));
            } else if let Some(nat) = Nat::of(conf) {
                let text = format!("the NAT rules of network {} are there", conf.name);
                mended.note(&text, nat.ensure().await);
            }
        }
    }
    if has(&BLOCK_MISPLACED) {
        mended.place_blocks(node);
    }
    if diagnosis.findings.iter().any(|found| found.kind.fixable) {
        let upkeep = node.upkeep(GRACE);
        let Some(mut upkeep) = mended.or_note("upkeep", upkeep) else { return mended };
        mended.reclaim(&mut upkeep, has(&DELETIONS_PUT_OFF)).await;
        let is_current = !has(&BPFFS_PRIVATE)
            && mended.or_note("pinned programs", is_current(node)).unwrap_or(false);
        if is_current {
            mended.reattach(&upkeep).await;
            mended.remove_pins(&upkeep).await;
        }
    }
    mended
}

/// Whether pods get this executable's programs, or nobody's yet.
fn is_current(node: &Node) -> Result<bool, Failure> {
    let builds = Datapath::pinned_builds(&node.settings()?.paths.bpffs_root)?;
    let ours = Datapath::embedded_build()?;
    let current = dataplane::current(&builds);
    Ok(current.is_none_or(|build| build.build == ours && build.abi_version == ABI_VERSION))
}

impl Mended {
    fn place_blocks(&mut self, node: &Node) {
        let look = || -> Result<_, Failure> {
            let store = node.store()?;
            let misplaced = store.misplaced_blocks()?;
            Ok((store, misplaced))
        };
        let Some((store, misplaced)) = self.or_note("placements", look()) else { return };
        for block in misplaced {
            let placed = store.place_block(&block).map(drop);
            self.note(&format!("the placement of block {block} is what the block says"), placed);
        }
    }

    async fn reclaim(&mut self, upkeep: &mut Upkeep, has_deletions: bool) {
        if has_deletions
            && let Some(count) = self.or_note("deletions", upkeep.drain_deletions().await)
        {
            self.done.push(format!("removed {count} attachments whose DEL had been put off"));
        }
        if self.or_note("reclaim", upkeep.reclaim().await).is_none() {
            return;
        }
        tokio::time::sleep(GRACE).await;
        let Some(report) = self.or_note("reclaim", upkeep.reclaim().await) else { return };
        for attachment in report.reclaimed {
            self.done.push(format!("took away what was left of {attachment}"));
        }
        for attachment in report.left_to_ipam {
            self.done.push(format!(
                "took away what the kernel had of {attachment}; its record stays for its IPAM plugin"
            ));
        }
        for address in report.map_entries {
            self.done.push(format!("removed the map entry of {address}"));
        }
        self.note_failures(report.failed);
    }

    async fn reattach(&mut self, upkeep: &Upkeep) {
        let Some(report) = self.or_note("reattach", upkeep.reattach().await) else { return };
        for attachment in report.attached {
            self.done.push(format!("attached the programs of {attachment}"));
        }
        for attachment in report.replaced {
            self.done.push(format!("gave {attachment} the programs that new pods get"));
        }
        for address in report.map_entries {
            self.done.push(format!("wrote the map entry of {address}"));
        }
        for address in report.routes {
            self.done.push(format!("made neighbour and route of {address}"));
        }
        self.note_failures(report.failed);
    }

    async fn remove_pins(&mut self, upkeep: &Upkeep) {
        let removed = self.or_note("unused pins", upkeep.remove_unused_pins().await);
        for path in removed.unwrap_or_default() {
            self.done.push(format!("removed {}, which nothing used", path.display()));
        }
    }

    fn note<E: std::error::Error + 'static>(&mut self, text: &str, outcome: Result<(), E>) {
        match outcome {
            Ok(()) => self.done.push(text.to_owned()),
            Err(error) => self.failed.push(chain(&error)),
        }
    }

    fn or_note<T, E>(&mut self, what: &str, outcome: Result<T, E>) -> Option<T>
    where
        E: std::error::Error + 'static,
    {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.push(format!("{what}: {}", chain(&error)));
                None
            }
        }
    }

    fn note_failures(&mut self, failures: Failures) {
        let sentences =
            failures.into_iter().map(|(what, error)| format!("{what}: {}", chain(&error)));
        self.failed.extend(sentences);
    }
}
