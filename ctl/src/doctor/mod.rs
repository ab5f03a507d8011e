//! What is wrong with a node, and what to do about it.
//!
//! | file | what it looks at |
//! | --- | --- |
//! | `configuration.rs` | networks, the agent's configuration, plugins |
//! | `picture.rs` | the datastore, and what the others share |
//! | `dataplane.rs` | BPF file system, kernel, programs, maps |
//! | `endpoints.rs` | every endpoint, filters of others, NAT rules |
//! | `leftovers.rs` | links, addresses, map entries and routes of nobody |
//! | `host.rs`, `pools.rs`, `agent.rs` | what they are called by |
//!
//! Whatever can be found is in `catalogue.rs`. Invariant: a look changes nothing, and what cannot be looked at is a
//! finding; `mend.rs` changes things, when it is asked to.

mod agent;
mod catalogue;
mod configuration;
mod dataplane;
mod endpoints;
mod finding;
mod host;
mod leftovers;
mod mend;
mod picture;
mod pools;

use std::path::Path;
use std::time::Duration;

pub(crate) use agent::ask;
pub(crate) use catalogue::{ALL, Gravity, Kind};
pub(crate) use dataplane::current;
pub(crate) use finding::Diagnosis;
pub(crate) use mend::mend;
pub(crate) use picture::Picture;

use crate::node::Node;
use catalogue::WITHOUT_ROOT;
use finding::Findings;

/// Between two looks: a verb that is at work during the first is done by then.
const PAUSE: Duration = Duration::from_millis(300);

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What takes no longer with more pods, or hardly.
    Quick,
    /// Everything.
    Deep,
}

/// Looks the node over, and returns what it looked at as well.
pub(crate) async fn examine<'n>(
    node: &'n Node,
    agent_config: &Path,
    bin_dir: &Path,
    depth: Depth,
) -> (Option<Picture<'n>>, Diagnosis) {
    let mut findings = Findings::default();
    configuration::look(node, agent_config, bin_dir, &mut findings);
    // Without any configuration nothing says where the rest would be, and that has been said.
    let mut picture = Picture::take(node, &mut findings).await.ok();
    if let Some(picture) = &mut picture {
        picture.read_ledger(&mut findings);
        examine_node(picture, depth, &mut findings).await;
    }
    (picture, findings.into_diagnosis())
}

async fn examine_node(picture: &Picture<'_>, depth: Depth, findings: &mut Findings) {
    if picture.is_root {
        dataplane::look(picture, depth, findings).await;
        if depth == Depth::Deep {
            endpoints::look(picture, findings).await;
            host::look_at_firewall(picture, findings);
        }
    } else {
        findings.add(&WITHOUT_ROOT, "margayctl runs without root's rights");
    }
    look_twice(picture, findings).await;
    host::look(picture, findings).await;
    pools::look(picture, findings);
    agent::look(picture, findings).await;
}

/// What a verb or the agent may be about to put right is believed once a picture that is taken later shows it too.
async fn look_twice(picture: &Picture<'_>, findings: &mut Findings) {
    let (mut first, ways) = (Findings::default(), agent::missing_ways(picture));
    let entries = agent::wrong_entries(picture);
    if picture.is_root {
        leftovers::look(picture, &mut first);
    }
    if first.0.is_empty() && ways.is_empty() && entries.is_empty() {
        return;
    }
    tokio::time::sleep(PAUSE).await;
    let mut of_taking = Findings::default();
    let again = Picture::take(picture.node, &mut of_taking).await;
    let Some(again) = findings.or_note("the node, once more,", again) else { return };
    if again.site.is_none() && picture.site.is_some() {
        findings.0.append(&mut of_taking.0);
    }
    let mut second = Findings::default();
    leftovers::look(&again, &mut second);
    findings.0.extend(second.0.into_iter().filter(|finding| first.0.contains(finding)));
    agent::name_ways(ways.intersection(&agent::missing_ways(&again)), findings);
    for entry in entries.intersection(&agent::wrong_entries(&again)) {
        findings.add(&catalogue::REMOTE_ENTRY_WRONG, entry);
    }
}

/// Nine tenths.
fn is_nearly_full(used: u128, capacity: u128) -> bool {
    used.saturating_mul(10) >= capacity.saturating_mul(9)
}
