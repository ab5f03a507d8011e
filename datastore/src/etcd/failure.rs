//! What can go wrong between here and etcd, and what a caller can do about it.

use std::error::Error;
use std::io;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};

use crate::backend::BackendError;

/// Why an attempt to have a request answered by one member came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There was no connection, so the request was not sent.
    #[error("connect to {endpoint}: {reason}")]
    Connect { endpoint: String, reason: String, is_tls: bool },
    /// The member answered with a refusal, or the connection broke.
    #[error("{endpoint}: {reason}")]
    Refused { endpoint: String, reason: String, code: Code, is_tls: bool },
    /// No answer in time.
    #[error("{endpoint}: no answer within {} ms", after.as_millis())]
    NoAnswer { endpoint: String, after: Duration },
    /// The requests before this one have used up the time that there was for all.
    #[error("the {} ms that this process may wait for etcd are over", patience.as_millis())]
    OutOfPatience { patience: Duration },
    /// The thread that talks to etcd cannot be started, or has ended.
    #[error("the thread that talks to etcd")]
    Worker(#[source] io::Error),
    /// The answer is not what the request was for.
    #[error("{endpoint}: an answer without {missing}")]
    Malformed { endpoint: String, missing: &'static str },
}

/// Refusals that share a code with others, as etcd's own client knows them: by their text
/// (`api/v3rpc/rpctypes/error.go`).
mod refusal {
    pub(super) const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
    pub(super) const NO_LEADER: &str = "etcdserver: no leader";
    pub(super) const OF_AUTHENTICATION: [&str; 3] = [
        "etcdserver: authentication failed, invalid user ID or password",
        "etcdserver: user name is empty",
        "etcdserver: authentication is not enabled",
    ];
    pub(super) const OLD_AUTH_REVISION: &str = "etcdserver: revision of auth store is old";
}

impl Failure {
    pub(super) fn of_status(endpoint: &str, status: &Status) -> Self {
        let endpoint = endpoint.to_owned();
        let cause = status.source();
        let is_tls = causes(cause).any(is_of_tls);
        let reason = reason(status);
        if causes(cause).any(|cause| cause.is::<ConnectError>()) {
            Self::Connect { endpoint, reason, is_tls }
        } else {
            Self::Refused { endpoint, reason, code: status.code(), is_tls }
        }
    }

    /// Whether nothing can have come of the request.
    pub(super) fn is_without_effect(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::OutOfPatience { .. } | Self::Worker(_) => true,
            Self::Refused { code, reason, .. } => match code {
                Code::Unavailable => reason == refusal::NO_LEADER,
                code => {
                    *code != Code::Unknown && *code != Code::Cancelled && *code != Code::Aborted
                }
            },
            Self::NoAnswer { .. } | Self::Malformed { .. } => false,
        }
    }

    /// Whether another member, or the same one a little later, may answer.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { code, is_tls, .. } => {
                *is_tls
                    || matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
                    || (*code == Code::ResourceExhausted && !self.is_no_space())
            }
            Self::OutOfPatience { .. } | Self::Worker(_) | Self::Malformed { .. } => false,
        }
    }

    /// Whether certificates are in the way, which do not mend themselves.
    pub(super) fn is_of_tls(&self) -> bool {
        matches!(self, Self::Connect { is_tls: true, .. } | Self::Refused { is_tls: true, .. })
    }

    /// Whether the member does not take this node for who may ask, or this node the member: for want of a
    /// certificate, a password or a permission.
    pub(super) fn is_denial(&self) -> bool {
        match self {
            Self::Refused { code: Code::Unauthenticated | Code::PermissionDenied, .. } => true,
            Self::Refused { reason, .. } if refusal::OF_AUTHENTICATION.contains(&&**reason) => true,
            _ => self.is_of_tls(),
        }
    }

    /// Whether the token that came with the request is no longer good.
    pub(super) fn is_outdated_token(&self) -> bool {
        match self {
            Self::Refused { code: Code::Unauthenticated, .. } => true,
            Self::Refused { reason, .. } => reason == refusal::OLD_AUTH_REVISION,
            _ => false,
        }
    }

    /// Whether the revision that the request names is forgotten.
    pub(super) fn is_compacted(&self) -> bool {
        matches!(self, Self::Refused { code: Code::OutOfRange, .. })
    }

    /// Whether what the request is about does not exist.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: Code::NotFound, .. })
    }

    fn is_no_space(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == refusal::NO_SPACE)
    }

    pub(super) fn into_backend(self, operation: String) -> BackendError {
        let is_no_space = self.is_no_space();
        let is_corrupt = matches!(self, Self::Refused { code: Code::DataLoss, .. });
        let is_tls =
            matches!(self, Self::Connect { is_tls: true, .. } | Self::Refused { is_tls: true, .. });
        let is_busy = self.is_passing() || matches!(self, Self::OutOfPatience { .. });
        let source = Box::new(self);
        match () {
            () if is_no_space => BackendError::Full { operation, source },
            () if is_corrupt => BackendError::Damaged { operation, source },
            () if is_busy && !is_tls => BackendError::Busy { operation, source },
            () => BackendError::Failed { operation, source },
        }
    }
}

/// What is behind a status: the refusal in etcd's words, or what happened to the connection.
fn reason(status: &Status) -> String {
    let mut reason = status.message().to_owned();
    for cause in causes(status.source()) {
        // Each wrapper repeats what it wraps, some of them in full.
        let text = cause.to_string();
        if !reason.contains(&text) {
            let colon = if reason.is_empty() { "" } else { ": " };
            reason.push_str(colon);
            reason.push_str(&text);
        }
    }
    if reason.is_empty() { status.code().description().to_owned() } else { reason }
}

/// Whether TLS failed: in its handshake, or after it, when HTTP/2 keeps no more of it than the kind.
fn is_of_tls(cause: &(dyn Error + 'static)) -> bool {
    let io = cause.downcast_ref::<io::Error>();
    cause.is::<rustls::Error>()
        || io.is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// An error and its causes. An `io::Error` made of another error shows that one's source for its own
/// and would hide the error itself.
fn causes<'e>(
    error: Option<&'e (dyn Error + 'static)>,
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error, |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}
