//! What nobody but the node's administrator may see, found in its configurations and taken out of everything.
//!
//! A value is a secret by the name of its key, in whatever plugin's configuration, or by its looks: a password inside
//! a URL, a private key. Whatever was found once is taken out wherever else it stands, such as in a log.

use std::fs;

use serde_json::{Map, Value};

/// What stands in its place.
const REMOVED: &str = "(removed)";
/// Parts of the names of keys whose values are secrets.
const NAMES: [&str; 7] =
    ["password", "passwd", "secret", "token", "credential", "private_key", "key_data"];
/// Names of keys that name a file, not a secret; the file's contents may be one.
const FILES: [&str; 2] = ["_file", "_path"];
/// Shorter than this, a value stands in too many places by chance.
const LEAST_BYTES: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    values: Vec<String>,
}

impl Secrets {
    /// The document without its secrets, which are remembered.
    pub(super) fn take_from(&mut self, document: &Value) -> Value {
        match document {
            Value::Object(fields) => Value::Object(self.take_from_fields(fields)),
            Value::Array(items) => items.iter().map(|item| self.take_from(item)).collect(),
            Value::String(text) => Value::String(self.take_from_text(text)),
            other => other.clone(),
        }
    }

    fn take_from_fields(&mut self, fields: &Map<String, Value>) -> Map<String, Value> {
        let mut clean = Map::new();
        for (key, value) in fields {
            let name = key.to_ascii_lowercase();
            let is_secret = NAMES.iter().any(|secret| name.contains(secret));
            let is_file = FILES.iter().any(|file| name.ends_with(file));
            let value = match value {
                Value::Null => Value::Null,
                value if is_secret && is_file => {
                    self.remember_file(value);
                    self.take_from(value)
                }
                value if is_secret => {
                    self.remember_all(value);
                    Value::String(REMOVED.to_owned())
                }
                value => self.take_from(value),
            };
            clean.insert(key.clone(), value);
        }
        clean
    }

    fn take_from_text(&mut self, text: &str) -> String {
        if text.contains("-----BEGIN") {
            self.remember(text);
            return REMOVED.to_owned();
        }
        let urls = text.split(',').map(|url| {
            let (Some((scheme, rest)), true) = (url.split_once("://"), url.contains('@')) else {
                return url.to_owned();
            };
            let Some((user, host)) = rest.rsplit_once('@') else { return url.to_owned() };
            self.remember(user.split_once(':').map_or(user, |(_, password)| password));
            format!("{scheme}://{REMOVED}@{host}")
        });
        urls.collect::<Vec<_>>().join(",")
    }

    /// What a file holds is not shown, and may stand elsewhere.
    fn remember_file(&mut self, path: &Value) {
        let content = path.as_str().and_then(|path| fs::read_to_string(path).ok());
        self.remember(content.unwrap_or_default().trim());
    }

    fn remember_all(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.remember(text),
            Value::Array(items) => items.iter().for_each(|item| self.remember_all(item)),
            Value::Object(fields) => fields.values().for_each(|value| self.remember_all(value)),
            _ => {}
        }
    }

    fn remember(&mut self, secret: &str) {
        if secret.len() >= LEAST_BYTES && !self.values.iter().any(|known| known == secret) {
            self.values.push(secret.to_owned());
            // A longer one may hold a shorter one.
            self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// The text without any of them.
    pub(super) fn removed_from(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for secret in &self.values {
            // As JSON has it inside a string, too.
            let quoted = Value::String(secret.clone()).to_string();
            clean = clean.replace(secret.as_str(), REMOVED);
            clean = clean.replace(quoted.trim_matches('"'), REMOVED);
        }
        clean
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_taken_out_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "in-a-file\n").unwrap();
        let conf = json!({
            "etcd_username": "margay",
            "etcd_password": "in-a-\"key\"",
            "etcd_password_file": file,
            "etcd_key_file": "/etc/margay/key.pem",
            "etcd_endpoints": "https://10.0.0.1:2379,https://u:in-a-url@10.0.0.2:2379",
            "plugins": [{"kubernetes": {"k8s_auth_token": "a-token"}, "cert": "-----BEGIN X"}],
            "apiSecret": ["one-of-a-list"],
            "mtu": 1400,
        });
        let mut secrets = Secrets::default();

        let clean = secrets.take_from(&conf).to_string();

        let log = "in-a-\"key\" in-a-file in-a-url a-token one-of-a-list in-a-\\\"key\\\"";
        let log = secrets.removed_from(log);
        for secret in ["in-a-", "a-token", "BEGIN", "one-of-a-list"] {
            assert!(!clean.contains(secret), "{secret}: {clean}");
            assert!(!log.contains(secret), "{secret}: {log}");
        }
        for kept in ["10.0.0.1:2379", "10.0.0.2:2379", "/etc/margay/key.pem", "margay", "1400"] {
            assert!(clean.contains(kept), "{kept}: {clean}");
        }
    }
}
