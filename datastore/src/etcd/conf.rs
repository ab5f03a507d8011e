//! Where etcd is and how to talk to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};

/// Where etcd is and how to talk to it. Nothing of it has been looked at before [`Etcd::open`].
///
/// [`Etcd::open`]: super::Etcd::open
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConf {
    /// `http://ADDRESS:PORT` or `https://ADDRESS:PORT`, all of one cluster.
    pub endpoints: Vec<String>,
    /// What every key begins with. Ends in `/`.
    pub prefix: String,
    /// The certificates that the servers' are checked against, PEM. Without, `https` is refused.
    pub ca_cert_file: Option<PathBuf>,
    /// This client's certificate and its key, both PEM.
    pub client_cert: Option<ClientCert>,
    /// User and password, where etcd asks for them.
    pub credentials: Option<Credentials>,
    /// How long one member may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a single request may take, whatever happens.
    pub request_timeout: Duration,
    /// How long all requests together may have waited, after which each is refused at once: so that
    /// a process that must come to an end does, also if every one of them is slow. `None` is for
    /// daemons.
    pub patience: Option<Duration>,
}

/// Files of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: Password,
}

/// A password, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Text(String),
    /// A file that has nothing else in it but perhaps a final newline.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => out.write_str("Text(…)"),
            Self::File(path) => out.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A user and a password that have been read.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

impl EtcdConf {
    /// What every key begins with unless configured.
    pub const DEFAULT_PREFIX: &str = "/margay/v1/";
    /// [`EtcdConf::connect_timeout`] unless configured.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// [`EtcdConf::request_timeout`] unless configured.
    pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
    /// [`EtcdConf::patience`] of a CNI verb unless configured.
    pub const DEFAULT_VERB_PATIENCE: Duration = Duration::from_secs(15);

    /// Plain access to these endpoints, with the defaults for all else and without end to its
    /// patience.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: Self::DEFAULT_PREFIX.to_owned(),
            ca_cert_file: None,
            client_cert: None,
            credentials: None,
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            request_timeout: Self::DEFAULT_REQUEST_TIMEOUT,
            patience: None,
        }
    }

    /// Looks at what can be judged without reading a file.
    pub fn check(&self) -> Result<(), EtcdConfError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfError::NoEndpoint);
        }
        if !self.prefix.ends_with('/') {
            return Err(EtcdConfError::Prefix { prefix: self.prefix.clone() });
        }
        self.endpoints.iter().try_for_each(|endpoint| self.uri(endpoint).map(drop))
    }

    fn uri(&self, url: &str) -> Result<Uri, EtcdConfError> {
        let invalid = |reason| EtcdConfError::Endpoint { endpoint: without_user(url), reason };
        if url.contains('@') {
            return Err(invalid("a user and a password are configured by keys of their own"));
        }
        let uri: Uri = url.parse().map_err(|_| invalid("it is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") if self.ca_cert_file.is_some() => {}
            Some("https") => {
                return Err(invalid(
                    "https takes the certificates of an authority to check against",
                ));
            }
            _ => return Err(invalid("it begins with neither http:// nor https://")),
        }
        if uri.port_u16().is_none() {
            return Err(invalid("it names no port"));
        }
        Ok(uri)
    }

    /// The endpoints with their TLS settings, and the files of those read.
    pub(super) fn members(&self) -> Result<Vec<Endpoint>, EtcdConfError> {
        self.check()?;
        let tls = self.tls()?;
        self.endpoints.iter().map(|endpoint| self.member(endpoint, tls.as_ref())).collect()
    }

    fn member(&self, url: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, EtcdConfError> {
        let uri = self.uri(url)?;
        let is_tls = uri.scheme_str() == Some("https");
        let server = uri.host().map(bare_host).unwrap_or_default().to_owned();
        let endpoint = Endpoint::from(uri)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        match tls {
            Some(tls) if is_tls => endpoint
                .tls_config(tls.clone().domain_name(server))
                .map_err(|source| EtcdConfError::Tls { source }),
            _ => Ok(endpoint),
        }
    }

    /// The user, with the password read from where it is.
    pub(super) fn user(&self) -> Result<Option<User>, EtcdConfError> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(None) };
        let password = match password {
            Password::Text(password) => password.clone(),
            Password::File(path) => {
                let text = String::from_utf8(read(path)?)
                    .map_err(|_| EtcdConfError::PasswordFile { path: path.clone() })?;
                text.strip_suffix('\n').unwrap_or(&text).to_owned()
            }
        };
        Ok(Some(User { name: user.clone(), password }))
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, EtcdConfError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| EtcdConfError::Read { path: path.clone(), source })
        };
        let Some(ca) = &self.ca_cert_file else { return Ok(None) };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some(ClientCert { cert_file, key_file }) = &self.client_cert {
            tls = tls.identity(Identity::from_pem(read(cert_file)?, read(key_file)?));
        }
        Ok(Some(tls))
    }
}

/// A URL's host; an IPv6 address has brackets there.
pub(super) fn bare_host(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn read(path: &Path) -> Result<Vec<u8>, EtcdConfError> {
    std::fs::read(path).map_err(|source| EtcdConfError::Read { path: path.to_owned(), source })
}

/// A URL as it may be shown.
fn without_user(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => url.to_owned(),
    }
}

/// How often a connection with a watch on it is asked whether it is alive. etcd ends connections
/// that ask more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfError {
    /// There is nobody to talk to.
    #[error("no etcd endpoint is configured")]
    NoEndpoint,
    /// An endpoint is not one.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The prefix is none.
    #[error("etcd prefix {prefix:?} does not end in '/'")]
    Prefix {
        /// As configured.
        prefix: String,
    },
    /// A certificate or a key cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What is in a file cannot be a password.
    #[error("the password in {} is not text", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
    },
    /// The files are no certificates, or key and certificate do not belong together.
    #[error("certificates for etcd")]
    Tls {
        /// What is wrong with them.
        #[source]
        source: tonic::transport::Error,
    },
}
