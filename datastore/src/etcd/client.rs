//! Requests to whichever member of the cluster answers.
//!
//! One member is talked to until it fails; then the next one is. A request that may have reached a
//! member before the connection broke is repeated only if that does no harm: a write is not,
//! since it may have happened, and a compare-and-swap that is repeated then loses to itself.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::conf::{EtcdConf, User};
use super::connect::Connector;
use super::failure::Failure;
use super::messages::{AuthenticateRequest, AuthenticateResponse};

/// Pause after every member has failed once, growing up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// A cluster of etcd. To be used within the runtime that its worker owns.
pub(super) struct Client {
    members: Vec<Member>,
    /// Index of the member that answered last.
    current: Cell<usize>,
    user: Option<User>,
    token: RefCell<Option<MetadataValue<Ascii>>>,
    connect_timeout: Duration,
    request_timeout: Duration,
}

struct Member {
    endpoint: String,
    channel: Channel,
}

/// Whether a request may be sent a second time though the first may have been carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Always,
    UnlessSent,
}

impl Client {
    /// Connects to nobody yet; needs a runtime to be entered.
    pub(super) fn new(conf: &EtcdConf, endpoints: &[Endpoint], user: Option<User>) -> Self {
        let connector = Connector { timeout: conf.connect_timeout };
        let member = |(endpoint, url): (&Endpoint, &String)| Member {
            endpoint: url.clone(),
            channel: endpoint.connect_with_connector_lazy(connector.clone()),
        };
        Self {
            members: endpoints.iter().zip(&conf.endpoints).map(member).collect(),
            current: Cell::new(0),
            user,
            token: RefCell::new(None),
            connect_timeout: conf.connect_timeout,
            request_timeout: conf.request_timeout,
        }
    }

    /// Sends a request and waits for its answer, no longer than one request may take.
    pub(super) async fn unary<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        repeat: Repeat,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.somewhere(repeat, async |member| self.authorised(member, method, &request).await).await
    }

    /// Opens a stream in both directions.
    pub(super) async fn streaming<Q, A>(
        &self,
        method: &'static str,
        requests: impl Fn() -> Box<dyn Stream<Item = Q> + Send + Unpin>,
    ) -> Result<(Streaming<A>, String), Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.somewhere(Repeat::Always, async |member| {
            let mut request = self.request(member, requests()).await?;
            // A member that is cut off from the others would else keep the stream and say nothing.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let mut grpc = member.grpc();
            let ready = grpc.ready().await;
            ready.map_err(|error| member.failed(&tonic::Status::from_error(Box::new(error))))?;
            let codec = ProstCodec::<Q, A>::default();
            let path = PathAndQuery::from_static(method);
            let answer = grpc.streaming(request, path, codec).await;
            let stream = answer.map_err(|status| member.failed(&status))?.into_inner();
            Ok((stream, member.endpoint.clone()))
        })
        .await
    }

    /// Makes attempts, from the member that answered last on, until one succeeds, none can, or the
    /// time is over. Where no member even takes a connection the time is over earlier.
    async fn somewhere<T>(
        &self,
        repeat: Repeat,
        attempt: impl AsyncFn(&Member) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let deadline = began + self.request_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let (mut nobody_listens, mut time_helps) = (true, false);
            let mut last = None;
            for offset in 0..self.members.len() {
                let index = (self.current.get() + offset) % self.members.len();
                let member = &self.members[index];
                let outcome = self.once(member, deadline, repeat, &attempt).await;
                let failure = match outcome {
                    Ok(answer) => {
                        self.current.set(index);
                        return Ok(answer);
                    }
                    Err(failure) => failure,
                };
                let may_repeat = repeat == Repeat::Always || failure.is_without_effect();
                if !failure.is_passing() || !may_repeat || Instant::now() >= deadline {
                    self.turn_from(index, &failure);
                    return Err(failure);
                }
                nobody_listens &= matches!(failure, Failure::Connect { .. });
                time_helps |= !failure.is_of_tls();
                last = Some(failure);
            }
            let gives_up_at = match (time_helps, nobody_listens) {
                (false, _) => began,
                (true, true) => began + self.connect_timeout,
                (true, false) => deadline,
            };
            if Instant::now() + pause >= gives_up_at
                && let Some(failure) = last
            {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One attempt. What may be repeated elsewhere does not spend all of the time on one member.
    async fn once<T>(
        &self,
        member: &Member,
        deadline: Instant,
        repeat: Repeat,
        attempt: &impl AsyncFn(&Member) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let left = deadline.saturating_duration_since(began);
        let share = match repeat {
            Repeat::Always if self.members.len() > 1 => left / 2,
            _ => left,
        };
        match timeout_at(began + share, attempt(member)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let endpoint = member.endpoint.clone();
                Err(Failure::NoAnswer { endpoint, after: began.elapsed() })
            }
        }
    }

    /// Lets the next request begin with another member, if this one is to blame.
    fn turn_from(&self, index: usize, failure: &Failure) {
        if failure.is_passing() {
            self.current.set((index + 1) % self.members.len());
        }
    }

    /// A request with the user's token; a token that has expired is replaced once.
    async fn authorised<Q, A>(
        &self,
        member: &Member,
        method: &'static str,
        request: &Q,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let had_token = self.token().is_some();
        let first = self.request(member, request.clone()).await?;
        match member.unary(method, first).await {
            Err(failure) if had_token && failure.is_outdated_token() => {
                self.set_token(None);
                member.unary(method, self.request(member, request.clone()).await?).await
            }
            outcome => outcome,
        }
    }

    async fn request<Q>(&self, member: &Member, message: Q) -> Result<Request<Q>, Failure> {
        let mut request = Request::new(message);
        if let Some(user) = &self.user {
            let token = match self.token() {
                Some(token) => token,
                None => self.authenticate(member, user).await?,
            };
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }

    async fn authenticate(
        &self,
        member: &Member,
        user: &User,
    ) -> Result<MetadataValue<Ascii>, Failure> {
        let User { name, password } = user.clone();
        let request = Request::new(AuthenticateRequest { name, password });
        let answer: AuthenticateResponse =
            member.unary("/etcdserverpb.Auth/Authenticate", request).await?;
        let mut token: MetadataValue<Ascii> = answer.token.parse().map_err(|_| {
            Failure::Malformed { endpoint: member.endpoint.clone(), missing: "a usable token" }
        })?;
        token.set_sensitive(true);
        self.set_token(Some(token.clone()));
        Ok(token)
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.borrow().clone()
    }

    fn set_token(&self, token: Option<MetadataValue<Ascii>>) {
        self.token.replace(token);
    }
}

impl Member {
    /// A page of a list has a limit in records, and what a watch catches up with one in revisions;
    /// neither has one in bytes.
    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    async fn unary<Q, A>(&self, method: &'static str, request: Request<Q>) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        let ready = grpc.ready().await;
        ready.map_err(|error| self.failed(&tonic::Status::from_error(Box::new(error))))?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(method), codec).await;
        Ok(answer.map_err(|status| self.failed(&status))?.into_inner())
    }

    fn failed(&self, status: &tonic::Status) -> Failure {
        Failure::of_status(&self.endpoint, status)
    }
}
