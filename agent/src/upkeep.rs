//! The node's upkeep, again and again, on a thread of its own: it waits for the datastore and for locks,
//! and the routes to other nodes must not wait for it.

use std::time::Duration;
use std::{io, thread};

use margay::config::AgentConf;
use margay::error::{Error, chain};
use margay::upkeep::{Failures, Upkeep};
use margay_datastore::Store;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, MissedTickBehavior};

use crate::metrics::Metrics;

/// To be dropped when the maps that have been made know the ways to other nodes, or cannot be told.
pub type Taught = oneshot::Sender<()>;

/// Starts it. Ends with the process. `made` hears when this build's maps are there, before any pod gets
/// programs that go by them.
///
/// # Errors
/// When there is no runtime for it.
pub fn start(
    conf: &AgentConf,
    store: Store,
    metrics: Metrics,
    made: mpsc::Sender<Taught>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (node, paths) = (conf.nodename.clone(), conf.paths.clone());
    let (interval, grace) = (conf.upkeep_interval, conf.upkeep_grace);
    let (max_pods, max_flows) = (conf.max_pods, conf.max_flows);
    thread::spawn(move || {
        runtime.block_on(async {
            match Upkeep::new(store, &node, paths, grace) {
                Ok(upkeep) => {
                    look_after(upkeep.sized(max_pods, max_flows), interval, &metrics, made).await;
                }
                Err(error) => tracing::error!(error = chain(&error), "no upkeep of this node"),
            }
        });
    });
    Ok(())
}

/// What is started: upkeep now and then, for ever.
pub async fn look_after(
    mut upkeep: Upkeep,
    interval: Duration,
    metrics: &Metrics,
    made: mpsc::Sender<Taught>,
) {
    let mut turns = time::interval(interval);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_current = false;
    loop {
        turns.tick().await;
        // Once, when this build can be loaded: from then on its programs are those that pods get.
        if !is_current {
            is_current = note(metrics, "make_current", upkeep.make_current()).is_some();
            if is_current {
                wait_until_taught(&made).await;
            }
        }
        turn(&mut upkeep, metrics).await;
    }
}

/// Pods that come over from an earlier version's maps would otherwise be without `pod_to_node` until the
/// next look at the ways: past it, they could send to the overlay's port.
async fn wait_until_taught(made: &mpsc::Sender<Taught>) {
    let (taught, wait) = oneshot::channel();
    if made.send(taught).await.is_ok() {
        // Nothing is ever sent: that it is dropped is the answer.
        let _dropped = wait.await;
    }
}

/// Each part by itself: what one cannot do does not keep the others from it.
async fn turn(upkeep: &mut Upkeep, metrics: &Metrics) {
    if let Some(drained) = note(metrics, "drain_deletions", upkeep.drain_deletions().await) {
        metrics.note_upkeep("deletions_drained", drained);
    }
    if let Some(done) = note(metrics, "reclaim", upkeep.reclaim().await) {
        metrics.note_upkeep("reclaimed", done.reclaimed.len());
        metrics.note_upkeep("map_entries_removed", done.map_entries.len());
        note_failures(metrics, "reclaim", &done.failed);
    }
    if let Some(done) = note(metrics, "reattach", upkeep.reattach().await) {
        metrics.note_upkeep("reattached", done.attached.len());
        metrics.note_upkeep("replaced", done.replaced.len());
        metrics.note_upkeep("map_entries_restored", done.map_entries.len());
        metrics.note_upkeep("routes_restored", done.routes.len());
        note_failures(metrics, "reattach", &done.failed);
    }
    if let Some(removed) = note(metrics, "remove_pins", upkeep.remove_unused_pins().await) {
        metrics.note_upkeep("pins_removed", usize::from(!removed.is_empty()));
    }
    if let Some(tended) = note(metrics, "tend_blocks", upkeep.tend_blocks()) {
        metrics.note_upkeep("blocks_released", tended.released.len());
        metrics.note_upkeep("blocks_placed", tended.placed.len());
        metrics.note_used(tended.used);
    }
}

fn note<T>(metrics: &Metrics, part: &'static str, outcome: Result<T, Error>) -> Option<T> {
    match outcome {
        Ok(done) => Some(done),
        Err(error) => {
            tracing::warn!(part, error = chain(&error), "upkeep, tried again");
            metrics.note_upkeep_failure(part, 1);
            None
        }
    }
}

/// The log has them already, each where it happened.
fn note_failures(metrics: &Metrics, part: &'static str, failures: &Failures) {
    metrics.note_upkeep_failure(part, failures.len());
}
