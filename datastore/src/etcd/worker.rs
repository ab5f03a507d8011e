//! The bridge from callers that wait to a client that does not: one thread with a runtime of its
//! own.
//!
//! A caller may be inside a runtime itself, as margay's verbs are, and no runtime can be started
//! within another. So each call is handed to the thread, and its caller waits on a channel that
//! knows nothing of runtimes. The thread starts with the first call and ends with the [`Worker`].

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::client::Client;
use super::conf::{EtcdConf, EtcdConfError, User};
use super::failure::Failure;

/// Something to do on the thread.
type Job = Box<dyn FnOnce(&Rc<Client>) + Send>;

/// What a call is granted beyond its request's own deadline, and then the thread beyond that.
const GRACE: Duration = Duration::from_secs(1);

pub(super) struct Worker {
    conf: EtcdConf,
    endpoints: Vec<Endpoint>,
    user: Option<User>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    thread: Option<(UnboundedSender<Job>, JoinHandle<()>)>,
    /// How long callers have waited so far.
    waited: Duration,
}

impl Worker {
    pub(super) fn new(conf: EtcdConf) -> Result<Self, EtcdConfError> {
        let (endpoints, user) = (conf.members()?, conf.user()?);
        Ok(Self { conf, endpoints, user, state: Mutex::default() })
    }

    /// Runs `work` on the thread and waits for its outcome.
    pub(super) fn call<T, F>(
        &self,
        work: impl FnOnce(Rc<Client>) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + 'static,
    {
        let limit = self.limit()?;
        let began = Instant::now();
        let (answer, answered) = sync_channel(1);
        let endpoint = self.conf.endpoints.join(", ");
        let no_answer = move || Failure::NoAnswer { endpoint, after: limit };
        let slow_thread = no_answer.clone();
        let job: Job = Box::new(move |client| {
            let work = work(Rc::clone(client));
            spawn_local(async move {
                let outcome = timeout(limit, work).await.unwrap_or_else(|_| Err(no_answer()));
                // Nobody is left to be told if the caller has given up.
                let _ = answer.send(outcome);
            });
        });
        self.jobs()?.send(job).map_err(|_| Failure::Worker(ended()))?;
        let outcome = answered.recv_timeout(limit + GRACE);
        self.state().waited += began.elapsed();
        outcome.unwrap_or_else(|error| match error {
            // The machine is so busy that the thread has not come to it; it may yet.
            RecvTimeoutError::Timeout => Err(slow_thread()),
            RecvTimeoutError::Disconnected => Err(Failure::Worker(ended())),
        })
    }

    /// Starts `work` on the thread, to go on for itself.
    pub(super) fn spawn<F>(
        &self,
        work: impl FnOnce(Rc<Client>) -> F + Send + 'static,
    ) -> Result<AbortHandle, Failure>
    where
        F: Future<Output = ()> + 'static,
    {
        let (started, handle) = sync_channel(1);
        let job: Job = Box::new(move |client| {
            // The caller waits for it.
            let _ = started.send(spawn_local(work(Rc::clone(client))).abort_handle());
        });
        self.jobs()?.send(job).map_err(|_| Failure::Worker(ended()))?;
        handle.recv().map_err(|_| Failure::Worker(ended()))
    }

    /// How long the next call may wait.
    fn limit(&self) -> Result<Duration, Failure> {
        let limit = self.conf.request_timeout + GRACE;
        let Some(patience) = self.conf.patience else { return Ok(limit) };
        let left = patience.saturating_sub(self.state().waited);
        if left.is_zero() { Err(Failure::OutOfPatience { patience }) } else { Ok(limit.min(left)) }
    }

    fn jobs(&self) -> Result<UnboundedSender<Job>, Failure> {
        let mut state = self.state();
        if let Some((jobs, _)) = &state.thread {
            return Ok(jobs.clone());
        }
        let (jobs, queue) = unbounded_channel();
        let (conf, endpoints) = (self.conf.clone(), self.endpoints.clone());
        let user = self.user.clone();
        let thread = std::thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(move || run(queue, || Client::new(&conf, &endpoints, user)))
            .map_err(Failure::Worker)?;
        state.thread = Some((jobs.clone(), thread));
        Ok(jobs)
    }

    /// The state is two plain values, good also after a panic elsewhere.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until nobody can send any more. What is under way then is dropped with the runtime.
fn run(mut queue: UnboundedReceiver<Job>, client: impl FnOnce() -> Client) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime to talk to etcd");
            return;
        }
    };
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let client = Rc::new(client());
        while let Some(job) = queue.recv().await {
            job(&client);
        }
    });
}

fn ended() -> io::Error {
    io::Error::other("it has ended")
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((jobs, thread)) = self.state().thread.take() {
            drop(jobs);
            // A panic there has been reported there.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::BackendError;

    #[test]
    fn a_thread_that_comes_to_nothing_in_time_is_a_busy_datastore() {
        let conf = EtcdConf {
            request_timeout: Duration::ZERO,
            ..EtcdConf::new(vec!["http://192.0.2.1:2379".to_owned()])
        };
        let worker = Worker::new(conf).unwrap();
        let (go_on, held) = mpsc::channel::<()>();
        let busy: Job = Box::new(move |_| assert!(held.recv().is_err()));
        worker.jobs().unwrap().send(busy).unwrap();

        let failure = worker.call(async |_| Ok(())).unwrap_err();

        assert!(!failure.is_without_effect(), "it may yet be done: {failure}");
        let error = failure.into_backend("update k".to_owned());
        assert!(matches!(error, BackendError::Busy { .. }), "{error:?}");
        drop(go_on);
    }
}
