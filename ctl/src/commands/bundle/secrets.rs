//! What nobody but the node's administrator may see, found in its configurations and taken out of everything.
//!
//! A value is a secret by the name of its key, in whatever plugin's configuration, or by its looks: a password inside
//! a URL, a private key. Whatever was found once is taken out wherever else it stands, such as in a log.

use std::fs;

use serde_json::{Map, Value};

/// What stands in its place.
const REMOVED: &str = "(removed)";
/// Parts of the names of keys whose values are secrets; of a name, letters and digits alone, in lower case.
const NAMES: [&str; 10] = [
    "password",
    "passphrase",
    "passwd",
    "psk",
    "secret",
    "token",
    "credential",
    "apikey",
    "privatekey",
    "keydata",
];
/// Ends of the names of keys that name a file, not a secret; the file's contents may be one.
const FILES: [&str; 2] = ["file", "path"];
/// Shorter than this, a value stands in too many places by chance.
const LEAST_BYTES: usize = 4;
/// What may stand before `://`, besides letters and digits.
const OF_A_SCHEME: [char; 3] = ['+', '-', '.'];

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
            let name: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
            let name = name.to_ascii_lowercase();
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
        let clean = urls(text).into_iter().map(|url| {
            let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
            let Some((user, host)) = rest.rsplit_once('@') else { return url.to_owned() };
            self.remember(user.split_once(':').map_or(user, |(_, password)| password));
            format!("{scheme}://{REMOVED}@{host}")
        });
        clean.collect::<Vec<_>>().join(",")
    }

    /// What a file holds is not shown, and may stand elsewhere.
    fn remember_file(&mut self, path: &Value) {
        let content = path.as_str().and_then(|path| fs::read_to_string(path).ok());
        self.remember(content.unwrap_or_default().trim());
    }

    fn remember_all(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.remember(text),
            Value::Number(number) => self.remember(&number.to_string()),
            Value::Array(items) => items.iter().for_each(|item| self.remember_all(item)),
            Value::Object(fields) => fields.values().for_each(|value| self.remember_all(value)),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn remember(&mut self, secret: &str) {
        if secret.len() >= LEAST_BYTES && !self.values.iter().any(|known| known == secret) {
            self.values.push(secret.to_owned());
            // A longer one may hold a shorter one.
            self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// The document without any of them, and a document still.
    pub(super) fn removed_from_document(&self, document: Value) -> Value {
        match document {
            Value::String(text) => Value::String(self.removed_from(&text)),
            Value::Number(number) if self.values.contains(&number.to_string()) => {
                Value::String(REMOVED.to_owned())
            }
            Value::Array(items) => {
                items.into_iter().map(|item| self.removed_from_document(item)).collect()
            }
            Value::Object(fields) => {
                let fields = fields.into_iter();
                let clean = |(key, value): (String, Value)| {
                    (self.removed_from(&key), self.removed_from_document(value))
                };
                Value::Object(fields.map(clean).collect())
            }
            other => other,
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

/// The parts of a list with commas. A comma inside a URL's password parts nothing: behind one that does, the next URL
/// begins.
fn urls(text: &str) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(comma) = rest.match_indices(',').map(|(at, _)| at).find(|at| {
        let (part, next) = (&rest[..*at], &rest[at + 1..]);
        begins_a_url(next) || !part.contains("://") || !next.contains('@')
    }) {
        parts.push(&rest[..comma]);
        rest = &rest[comma + 1..];
    }
    parts.push(rest);
    parts
}

fn begins_a_url(text: &str) -> bool {
    let scheme = text.trim_start().split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| {
        !scheme.is_empty()
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || OF_A_SCHEME.contains(&c))
    })
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
            "api-key": "hyphenated", "privateKey": "in-camels", "tls.key_data": "dotted",
            "Passphrase": "of-a-phrase", "wifi_psk": "shared-before", "db_passwd": 8472_9155,
            "apiKeyPath": "/etc/margay/api.key", "pin_passwd": 1, "of_urls": [
                "https://u:with,a-comma@10.0.0.3:2379,https://10.0.0.4:2379,https://u:two,com,mas@10.0.0.5:2379",
                "10.0.0.6:2379,https://u:behind-a-bare-one@10.0.0.7:2379",
            ],
            "mtu": 1400,
        });
        let mut secrets = Secrets::default();

        let clean = secrets.take_from(&conf).to_string();

        let in_keys = ["hyphenated", "in-camels", "dotted", "of-a-phrase", "shared-before"];
        let in_urls = ["with,a-comma", "two,com,mas", "behind-a-bare-one"];
        let others = ["in-a-", "a-token", "BEGIN", "one-of-a-list", "84729155"];
        let log = "in-a-\"key\" in-a-file in-a-url a-token one-of-a-list in-a-\\\"key\\\" 84729155";
        let log = format!("{log} {} {}", in_keys.join(" "), in_urls.join(" "));
        let log = secrets.removed_from(&log);
        for secret in others.into_iter().chain(in_keys).chain(in_urls) {
            assert!(!clean.contains(secret), "{secret}: {clean}");
            assert!(!log.contains(secret), "{secret}: {log}");
        }
        for kept in ["/etc/margay/key.pem", "/etc/margay/api.key", "margay", "1400"] {
            assert!(clean.contains(kept), "{kept}: {clean}");
        }
        for host in 1..=7 {
            assert!(clean.contains(&format!("10.0.0.{host}:2379")), "{host}: {clean}");
        }
        let document = json!({"84729155": [84_729_155, 7], "text": "in-a-url"});
        let removed = json!({REMOVED: [REMOVED, 7], "text": REMOVED});
        assert_eq!(secrets.removed_from_document(document), removed);
        assert_eq!(secrets.removed_from("verb 1 of 11"), "verb 1 of 11", "too short to be told");
    }
}
