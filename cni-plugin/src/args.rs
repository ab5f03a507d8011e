//! `CNI_ARGS`: what the runtime says about the pod, as `KEY=value;KEY=value`.
//!
//! The rules are those of the reference library (`types.LoadArgs`): a pair without exactly one
//! `=` is an error, an unknown key is one unless `IgnoreUnknown` is true. Every error is of CNI code
//! 4 and names the pair.

use std::net::IpAddr;

use crate::config::{Mac, parse_ip, parse_mac};

/// What `CNI_ARGS` holds. Absent and empty are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub pod_name: Option<String>,
    /// `K8S_POD_UID`.
    pub pod_uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`.
    pub infra_container_id: Option<String>,
    /// `IP`: addresses, separated by commas, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// `MAC`.
    pub mac: Option<Mac>,
}

/// A `CNI_ARGS` that margay refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// Not of the form `KEY=value`.
    #[error("CNI_ARGS: {pair:?} is not of the form KEY=value")]
    Pair {
        /// The pair as it stands.
        pair: String,
    },
    /// The value does not parse.
    #[error("CNI_ARGS: {pair:?}: the value must be {wanted}")]
    Value {
        /// The pair as it stands.
        pair: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// Unknown keys, and `IgnoreUnknown` is not set.
    #[error("CNI_ARGS: {pairs:?} unknown, and IgnoreUnknown=1 is not given")]
    Unknown {
        /// The pairs as they stand.
        pairs: Vec<String>,
    },
}

impl CniArgs {
    /// Parses the value of `CNI_ARGS`.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, value)| !key.is_empty() && !value.contains('='))
                .ok_or_else(|| ArgsError::Pair { pair: pair.to_owned() })?;
            let invalid = |wanted| ArgsError::Value { pair: pair.to_owned(), wanted };
            let text = || match value {
                "" => Ok(None),
                _ if value.contains(char::is_control) => Err(invalid(WANTED_TEXT)),
                _ => Ok(Some(value.to_owned())),
            };
            match key {
                "K8S_POD_NAMESPACE" => args.pod_namespace = text()?,
                "K8S_POD_NAME" => args.pod_name = text()?,
                "K8S_POD_UID" => args.pod_uid = text()?,
                "K8S_POD_INFRA_CONTAINER_ID" => args.infra_container_id = text()?,
                "IP" => args.ips = ips(value).ok_or_else(|| invalid(WANTED_IPS))?,
                "MAC" if value.is_empty() => args.mac = None,
                "MAC" => {
                    args.mac = Some(parse_mac(value).ok_or_else(|| invalid(WANTED_MAC))?);
                }
                "IgnoreUnknown" => {
                    ignore_unknown = truth(value).ok_or_else(|| invalid("0, 1, true or false"))?;
                }
                _ => unknown.push(pair.to_owned()),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(ArgsError::Unknown { pairs: unknown });
        }
        Ok(args)
    }
}

const WANTED_IPS: &str = "one unicast address of a family, or one of each with a comma between";
const WANTED_TEXT: &str = "text without control characters";
const WANTED_MAC: &str = "a unicast MAC address";

fn ips(value: &str) -> Option<Vec<IpAddr>> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in value.split(',').filter(|_| !value.is_empty()) {
        let ip = parse_ip(text.trim())?;
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return None;
        }
        ips.push(ip);
    }
    Some(ips)
}

fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_passes_is_read() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
                    K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=1-2;X=y";

        let args = CniArgs::parse(text).unwrap();

        assert_eq!(args.pod_namespace.as_deref(), Some("default"));
        assert_eq!(args.pod_name.as_deref(), Some("web-0"));
        assert_eq!(args.pod_uid.as_deref(), Some("1-2"));
        assert_eq!(args.infra_container_id.as_deref(), Some("abc"));
    }

    #[test]
    fn addresses_and_mac_are_read() {
        let args = CniArgs::parse("IP=10.0.0.5/24,fd00::5;MAC=02:00:00:00:00:05").unwrap();

        assert_eq!(args.ips.len(), 2);
        assert_eq!(args.mac, Some([2, 0, 0, 0, 0, 5]));
        assert_eq!(CniArgs::parse("IP=;MAC=;K8S_POD_UID=").unwrap(), CniArgs::default());
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
    }

    #[test]
    fn a_malformed_pair_is_named() {
        for (text, pair) in [
            ("K8S_POD_NAME", "K8S_POD_NAME"),
            ("IP=10.0.0.5;a=b=c", "a=b=c"),
            ("IgnoreUnknown=1;", ""),
            ("=x", "=x"),
        ] {
            let error = CniArgs::parse(text).unwrap_err();
            assert_eq!(error, ArgsError::Pair { pair: pair.into() });
        }
    }

    #[test]
    fn an_unusable_value_is_named() {
        for pair in [
            "IP=10.0.0",
            "IP=10.0.0.5,10.0.0.6",
            "IP=0.0.0.0",
            "IP=224.0.0.1",
            "IP=::ffff:10.0.0.5",
            "MAC=ff:ff:ff:ff:ff:ff",
            "MAC=02:00:00:00:00",
            "MAC=+2:00:00:00:00:05",
            "IgnoreUnknown=maybe",
            "K8S_POD_NAMESPACE=a\0",
            "K8S_POD_NAME=a\nb",
            "K8S_POD_UID=\u{1b}[2J",
            "K8S_POD_INFRA_CONTAINER_ID=\u{85}",
        ] {
            let error = CniArgs::parse(pair).unwrap_err();
            assert!(
                matches!(&error, ArgsError::Value { pair: named, .. } if named == pair),
                "{error}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_unless_it_may_be_ignored() {
        let error = CniArgs::parse("FOO=1;BAR=2").unwrap_err();
        assert_eq!(error, ArgsError::Unknown { pairs: vec!["FOO=1".into(), "BAR=2".into()] });
        assert!(CniArgs::parse("FOO=1;IgnoreUnknown=true").is_ok());
        assert!(CniArgs::parse("FOO=1;IgnoreUnknown=0").is_err());
    }

    #[test]
    fn no_truncation_makes_it_panic() {
        let text = "IgnoreUnknown=1;IP=10.0.0.5/24,fd00::5;MAC=02:00:00:00:00:05;K8S_POD_NAME=é";
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let _ = CniArgs::parse(&text[..end]);
        }
    }
}
