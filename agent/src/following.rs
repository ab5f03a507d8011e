//! Threads that follow the datastore, one for each topic: backends block.
//!
//! Invariant: whatever goes wrong, a thread tries again, and lists anew before it follows again, so
//! that no change is missed.

use std::thread;
use std::time::Duration;

use margay::error::chain;
use margay_datastore::{BackendError, IpamError, Store, StoreError, Topic};
use tokio::sync::mpsc::Sender;

use crate::topology::News;

/// How long one wait for a change is.
const WAIT: Duration = Duration::from_secs(5);
/// How long to wait after the first failure in a row; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest that this gets.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a topic cannot be followed.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("placements of blocks")]
    Place(#[from] IpamError),
}

/// Starts to follow all topics. Ends with the receiver.
pub fn start(store: &Store, news: &Sender<News>) {
    for topic in Topic::ALL {
        let (store, news) = (store.clone(), news.clone());
        thread::spawn(move || follow(&store, topic, &news));
    }
}

fn follow(store: &Store, topic: Topic, news: &Sender<News>) {
    let mut pause = FIRST_PAUSE;
    while !news.is_closed() {
        match list_and_follow(store, topic, news, &mut pause) {
            Ok(()) => return,
            Err(FollowError::Store(StoreError::Backend(BackendError::Compacted { .. }))) => {
                tracing::info!(?topic, "followed from too far back: listed anew");
            }
            Err(error) => {
                tracing::warn!(?topic, error = chain(&error), "the datastore is tried again");
                thread::sleep(pause);
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }
}

/// Blocks are followed by what their writers write along with them. An earlier build does not: without this, the agent
/// would take away its routes to the blocks of such a one.
fn place_blocks(store: &Store) -> Result<(), FollowError> {
    let placed = store.place_blocks()?;
    if !placed.is_empty() {
        let blocks = placed.len();
        tracing::warn!(blocks, "had no placement, or were placements without a block");
    }
    Ok(())
}

/// Ends well when nobody listens any more.
fn list_and_follow(
    store: &Store,
    topic: Topic,
    news: &Sender<News>,
    pause: &mut Duration,
) -> Result<(), FollowError> {
    if topic == Topic::Blocks {
        place_blocks(store)?;
    }
    let (revision, listed) = store.survey(topic)?;
    if news.blocking_send(News::Listed(topic, listed)).is_err() {
        return Ok(());
    }
    let mut follower = store.follow(topic, revision)?;
    *pause = FIRST_PAUSE;
    loop {
        let is_heard = match follower.next(WAIT) {
            Ok(Some(change)) => news.blocking_send(News::Changed(topic, change)).is_ok(),
            Ok(None) => !news.is_closed(),
            // It goes on where it was when the datastore is back.
            Err(error) if error.is_transient() => {
                tracing::warn!(?topic, error = chain(&error), "no news from the datastore");
                thread::sleep(FIRST_PAUSE);
                !news.is_closed()
            }
            Err(error) => return Err(error.into()),
        };
        if !is_heard {
            return Ok(());
        }
    }
}
