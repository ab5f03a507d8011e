//! Where records are: the node's own database or etcd.

use std::path::PathBuf;
use std::time::Duration;

use margay_datastore::{ClientCert, Credentials, EtcdConf, Password};

use super::field::Object;
use super::{ConfigError, path_of};

/// Where records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datastore {
    /// SQLite in the state directory.
    Local,
    /// A cluster of etcd, which all nodes share.
    Etcd(Box<EtcdConf>),
}

/// `etcd_*_timeout_ms`: a tenth of a second to ten minutes.
const TIMEOUTS_MS: std::ops::RangeInclusive<u32> = 100..=600_000;

impl Datastore {
    /// Reads `datastore_type` and the keys of etcd. Without `datastore_type`, endpoints say that it
    /// is etcd, as they did before Calico had that key.
    pub(super) fn from_object(
        netconf: &Object<'_>,
        unused: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        if let (Some(_), Some(field)) =
            (netconf.string("etcd_discovery_srv")?, netconf.get("etcd_discovery_srv"))
        {
            return Err(field.unsupported("it takes a name service; name the endpoints"));
        }
        let endpoints = endpoints(netconf)?;
        let kind = netconf.string("datastore_type")?;
        let Some(field) = netconf.get("datastore_type").filter(|_| kind.is_some()) else {
            return match endpoints {
                Some(endpoints) => etcd(netconf, endpoints).map(Box::new).map(Self::Etcd),
                None => Ok(Self::Local),
            };
        };
        match (kind, endpoints) {
            (Some("etcdv3" | "etcd"), Some(endpoints)) => {
                etcd(netconf, endpoints).map(Box::new).map(Self::Etcd)
            }
            (Some("etcdv3" | "etcd"), None) => {
                Err(netconf.missing("etcd_endpoints", "datastore_type says etcd"))
            }
            (Some("local" | "kubernetes"), Some(_)) => {
                Err(field.invalid("says something else than etcd_endpoints"))
            }
            (Some("local"), None) => Ok(Self::Local),
            // Calico's objects are not read; on one node the local datastore does the work.
            (Some("kubernetes"), None) => {
                unused.push("datastore_type".into());
                Ok(Self::Local)
            }
            _ => Err(field.invalid("must be local, etcdv3 or kubernetes")),
        }
    }
}

impl Datastore {
    /// The same without a limit to how long all calls may take together, which is a verb's: for a daemon, and whatever
    /// else an operator ends. Each call keeps its own.
    #[must_use]
    pub fn for_a_daemon(mut self) -> Self {
        if let Self::Etcd(conf) = &mut self {
            conf.patience = None;
        }
        self
    }
}

/// `etcd_endpoints`, URLs with commas between them, or `etcd_scheme` and `etcd_authority`, as Calico
/// had them first.
fn endpoints(netconf: &Object<'_>) -> Result<Option<Vec<String>>, ConfigError> {
    if let Some(text) = netconf.string("etcd_endpoints")? {
        let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
        return Ok(Some(urls.map(str::to_owned).collect()));
    }
    let Some(authority) = netconf.string("etcd_authority")? else { return Ok(None) };
    let scheme = netconf.string("etcd_scheme")?.unwrap_or("http");
    Ok(Some(vec![format!("{scheme}://{authority}")]))
}

fn etcd(netconf: &Object<'_>, endpoints: Vec<String>) -> Result<EtcdConf, ConfigError> {
    let verb_timeout = timeout(netconf, "etcd_verb_timeout_ms", EtcdConf::DEFAULT_VERB_PATIENCE)?;
    let conf = EtcdConf {
        endpoints,
        prefix: prefix(netconf)?,
        ca_cert_file: file(netconf, "etcd_ca_cert_file")?,
        client_cert: client_cert(netconf)?,
        credentials: credentials(netconf)?,
        connect_timeout: timeout(
            netconf,
            "etcd_connect_timeout_ms",
            EtcdConf::DEFAULT_CONNECT_TIMEOUT,
        )?,
        request_timeout: timeout(
            netconf,
            "etcd_request_timeout_ms",
            EtcdConf::DEFAULT_REQUEST_TIMEOUT,
        )?,
        patience: Some(verb_timeout),
    };
    conf.check().map_err(|error| ConfigError::Endpoint { reason: error.to_string() })?;
    Ok(conf)
}

fn prefix(netconf: &Object<'_>) -> Result<String, ConfigError> {
    match (netconf.string("etcd_prefix")?, netconf.get("etcd_prefix")) {
        (Some(prefix), _) if prefix.starts_with('/') && prefix.ends_with('/') => {
            Ok(prefix.to_owned())
        }
        (Some(_), Some(field)) => Err(field.invalid("must begin and end with '/'")),
        _ => Ok(EtcdConf::DEFAULT_PREFIX.to_owned()),
    }
}

fn client_cert(netconf: &Object<'_>) -> Result<Option<ClientCert>, ConfigError> {
    match (file(netconf, "etcd_cert_file")?, file(netconf, "etcd_key_file")?) {
        (Some(cert_file), Some(key_file)) => Ok(Some(ClientCert { cert_file, key_file })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(netconf.missing("etcd_key_file", "etcd_cert_file is there")),
        (None, Some(_)) => Err(netconf.missing("etcd_cert_file", "etcd_key_file is there")),
    }
}

fn credentials(netconf: &Object<'_>) -> Result<Option<Credentials>, ConfigError> {
    let text = netconf.string("etcd_password")?.map(|text| Password::Text(text.to_owned()));
    let file = file(netconf, "etcd_password_file")?.map(Password::File);
    if let (Some(_), Some(_), Some(field)) = (&text, &file, netconf.get("etcd_password_file")) {
        return Err(field.invalid("there is etcd_password as well"));
    }
    let user = netconf.string("etcd_username")?.map(str::to_owned);
    match (user, text.or(file)) {
        (Some(user), Some(password)) => Ok(Some(Credentials { user, password })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(netconf.missing("etcd_password", "etcd_username is there")),
        (None, Some(_)) => Err(netconf.missing("etcd_username", "a password for etcd is there")),
    }
}

fn file(netconf: &Object<'_>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
    let given = netconf.string(key)?.and(netconf.get(key));
    given.as_ref().map(path_of).transpose()
}

fn timeout(netconf: &Object<'_>, key: &str, default: Duration) -> Result<Duration, ConfigError> {
    let configured = netconf.integer(key, TIMEOUTS_MS)?;
    Ok(configured.map_or(default, |ms| Duration::from_millis(ms.into())))
}
