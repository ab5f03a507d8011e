//! Following etcd's history.
//!
//! A task on the worker's thread holds the stream and hands the events over; what the caller has not
//! fetched yet is bounded, and beyond that HTTP/2 makes etcd wait. When the stream breaks the task
//! opens another one behind the last event that it handed over.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tonic::codegen::tokio_stream::{self, Stream, StreamExt};

use super::client::Client;
use super::failure::Failure;
use super::messages::{WatchCreateRequest, WatchEvent, WatchRequest, WatchResponse};
use super::worker::Worker;
use super::{from_etcd, range, to_etcd, versioned};
use crate::backend::{BackendError, Event, Revision, Versioned, Watch};

/// [`WatchEvent::kind`] of a key that was removed.
const DELETION: i32 = 1;

/// Between two streams.
const PAUSE: Duration = Duration::from_millis(50);

/// Events that may wait for the caller.
const AHEAD: usize = 1_024;

type Seen = Result<Event, BackendError>;

/// A watch as its caller holds it.
pub(super) struct Changes {
    events: Receiver<Seen>,
    room: Arc<Semaphore>,
    task: AbortHandle,
}

impl Changes {
    pub(super) fn start(
        worker: &Worker,
        root: &str,
        prefix: &str,
        after: Revision,
    ) -> Result<Self, Failure> {
        let (sender, events) = channel();
        let room = Arc::new(Semaphore::new(AHEAD));
        let follower = Follower {
            root: root.to_owned(),
            prefix: prefix.to_owned(),
            after,
            events: sender,
            room: Arc::clone(&room),
        };
        let task = worker.spawn(move |client| follower.run(client))?;
        Ok(Self { events, room, task })
    }
}

impl Watch for Changes {
    fn next(&mut self, timeout: Duration) -> Result<Option<Event>, BackendError> {
        match self.events.recv_timeout(timeout) {
            Ok(seen) => {
                self.room.add_permits(1);
                seen.map(Some)
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(BackendError::Failed {
                operation: "watch".to_owned(),
                source: "it has ended".into(),
            }),
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task's side.
struct Follower {
    root: String,
    prefix: String,
    /// Everything up to here was handed over.
    after: Revision,
    events: Sender<Seen>,
    room: Arc<Semaphore>,
}

/// Why a watch is over.
enum End {
    /// Nobody wants more.
    Unwatched,
    /// There is nothing more to be had; the caller knows why.
    Told,
}

impl Follower {
    async fn run(mut self, client: Rc<Client>) {
        while self.follow(&client).await.is_ok() {
            sleep(PAUSE).await;
        }
    }

    /// Opens a stream and hands over what comes until it breaks, which the caller does not hear of.
    /// It hears of one that cannot be opened for as long as a request may take.
    async fn follow(&mut self, client: &Client) -> Result<(), End> {
        let request = self.request();
        let requests = || -> Box<dyn Stream<Item = WatchRequest> + Send + Unpin> {
            // The stream ends when the requests do.
            Box::new(tokio_stream::once(request.clone()).chain(tokio_stream::pending()))
        };
        let opened = client.streaming("/etcdserverpb.Watch/Watch", requests).await;
        let mut answers = match opened {
            Ok((answers, _)) => answers,
            Err(failure) => {
                let failure = failure.into_backend(self.operation());
                return self.hand_over(Err(failure)).await;
            }
        };
        while let Ok(Some(answer)) = answers.message().await {
            self.take(answer).await?;
        }
        Ok(())
    }

    fn request(&self) -> WatchRequest {
        let (key, range_end) = range(&self.root, &self.prefix);
        let start_revision = to_etcd(Revision(self.after.0.saturating_add(1)));
        let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true };
        WatchRequest { create: Some(create) }
    }

    async fn take(&mut self, answer: WatchResponse) -> Result<(), End> {
        if answer.compact_revision > 0 {
            let oldest = from_etcd(answer.compact_revision);
            let compacted = BackendError::Compacted { after: self.after, oldest };
            self.hand_over(Err(compacted)).await?;
            return Err(End::Told);
        }
        if answer.canceled {
            let operation = self.operation();
            let source = answer.cancel_reason.into();
            self.hand_over(Err(BackendError::Failed { operation, source })).await?;
            return Err(End::Told);
        }
        // An answer without events tells how far the history has come without any; but not the
        // first one, which comes before those of the past.
        let is_progress = answer.events.is_empty() && !answer.created;
        for event in answer.events {
            if let Some(event) = self.event(event) {
                let revision = event.revision();
                self.hand_over(Ok(event)).await?;
                self.after = revision;
            }
        }
        if let Some(header) = answer.header.filter(|_| is_progress) {
            self.after = self.after.max(from_etcd(header.revision));
        }
        Ok(())
    }

    fn event(&self, event: WatchEvent) -> Option<Event> {
        let Versioned { key, value, revision } = versioned(&self.root, event.kv?)?;
        Some(match event.kind {
            DELETION => Event::Delete { key, revision },
            _ => Event::Put(Versioned { key, value, revision }),
        })
    }

    /// Waits until the caller has room for one more.
    async fn hand_over(&self, seen: Seen) -> Result<(), End> {
        // It is never closed.
        if let Ok(room) = self.room.acquire().await {
            room.forget();
        }
        self.events.send(seen).map_err(|_| End::Unwatched)
    }

    fn operation(&self) -> String {
        format!("watch {}", self.prefix)
    }
}
