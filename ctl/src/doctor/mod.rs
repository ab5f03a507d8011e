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

pub(crate) use agent::ask;
pub(crate) use catalogue::{ALL, Gravity, Kind};
pub(crate) use dataplane::current;
pub(crate) use finding::Diagnosis;
pub(crate) use mend::mend;
pub(crate) use picture::Picture;

use crate::node::Node;
use catalogue::WITHOUT_ROOT;
use finding::Findings;

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
    let picture = Picture::take(node, &mut findings).await.ok();
    if let Some(picture) = &picture {
        examine_node(picture, depth, &mut findings).await;
    }
    (picture, findings.into_diagnosis())
}

async fn examine_node(picture: &Picture<'_>, depth: Depth, findings: &mut Findings) {
    if picture.is_root {
        dataplane::look(picture, depth, findings).await;
        if depth == Depth::Deep {
            endpoints::look(picture, findings).await;
        }
        leftovers::look(picture, findings);
    } else {
        findings.add(&WITHOUT_ROOT, "margayctl runs without root's rights");
    }
    host::look(picture, findings).await;
    pools::look(picture, findings);
    agent::look(picture, findings).await;
}

/// Nine tenths.
fn is_nearly_full(used: u128, capacity: u128) -> bool {
    used.saturating_mul(10) >= capacity.saturating_mul(9)
}
