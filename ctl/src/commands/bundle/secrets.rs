//! What nobody but the node's administrator may see, found in its configurations and taken out of everything.
//!
//! A value is a secret by the name of its key, in whatever plugin's configuration, or by its looks ([`looks`]). Whatever
//! was found once is taken out wherever else it stands, such as in a log. Of what a secret's name stands for, a switch is
//! none, and a number only where the name says of nothing that it counts.

use std::fs;

use serde_json::{Map, Value};

use super::looks::{self, Named};

/// What stands in its place.
const REMOVED: &str = "(removed)";
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
        self.take(document, false)
    }

    /// Where `is_secret`, every value of it is one that does not say otherwise.
    fn take(&mut self, value: &Value, is_secret: bool) -> Value {
        match value {
            Value::Object(fields) => Value::Object(self.take_from_fields(fields, is_secret)),
            Value::Array(items) => self.take_from_items(items, is_secret),
            Value::Null | Value::Bool(_) => value.clone(),
            Value::Number(number) if is_secret => {
                self.remember(&number.to_string());
                Value::String(REMOVED.to_owned())
            }
            Value::Number(_) => value.clone(),
            Value::String(text) if is_secret && !text.is_empty() => {
                self.remember(text);
                Value::String(REMOVED.to_owned())
            }
            Value::String(text) => Value::String(self.take_from_text(text)),
        }
    }

    fn take_from_fields(
        &mut self,
        fields: &Map<String, Value>,
        is_secret: bool,
    ) -> Map<String, Value> {
        // A variable of an environment: {"name": "PASSWORD", "value": "…"}.
        let names_a_secret = ["name", "key"].iter().any(|key| {
            fields.get(*key).and_then(Value::as_str).map(looks::named) == Some(Named::Secret)
        });
        let mut clean = Map::new();
        for (key, value) in fields {
            let is_of_several = value.is_object() || value.is_array();
            let value = match looks::named(key) {
                // Whatever else the name says: each of them is one.
                _ if is_of_several && looks::is_about_a_secret(key) => self.take(value, true),
                Named::Measure if looks::is_measure(value) => value.clone(),
                // What has a secret's name and is none by its looks is one all the same.
                Named::Measure if looks::is_about_a_secret(key) => self.take(value, true),
                Named::Secret => self.take(value, true),
                Named::File => {
                    self.remember_file(value);
                    self.take(value, false)
                }
                _ if key == "value" && names_a_secret => self.take(value, true),
                Named::Measure | Named::Nothing => {
                    let is_a_variables_name = key == "name" && fields.contains_key("value");
                    self.take(value, is_secret && !is_a_variables_name)
                }
            };
            clean.insert(key.clone(), value);
        }
        clean
    }

    /// Of a command line, what follows `--token` is the token.
    fn take_from_items(&mut self, items: &[Value], is_secret: bool) -> Value {
        let mut is_next = false;
        let mut clean = Vec::with_capacity(items.len());
        for item in items {
            clean.push(self.take(item, is_secret || is_next));
            let flag = item.as_str().filter(|text| text.starts_with('-') && !text.contains('='));
            is_next = flag.map(looks::named) == Some(Named::Secret);
        }
        Value::Array(clean)
    }

    fn take_from_text(&mut self, text: &str) -> String {
        if let Some(document) = document(text) {
            let clean = self.take(&document, false);
            return if clean == document { text.to_owned() } else { clean.to_string() };
        }
        let (clean, secrets) = looks::cleaned(text, REMOVED);
        secrets.iter().for_each(|secret| self.remember(secret));
        clean
    }

    /// What a file holds is not shown, and may stand elsewhere.
    fn remember_file(&mut self, path: &Value) {
        let content = path.as_str().and_then(|path| fs::read_to_string(path).ok());
        self.remember(content.unwrap_or_default().trim());
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
            Value::String(text) => {
                Value::String(self.removed_from(&Self::default().take_from_text(&text)))
            }
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

    /// The text without any of them, and without what looks like one.
    pub(super) fn removed_from_lines(&self, text: &str) -> String {
        let lines = text.split_inclusive('\n').map(|line| {
            let bare = line.trim_end_matches('\n');
            Self::default().take_from_text(bare) + &line[bare.len()..]
        });
        self.removed_from(&lines.collect::<String>())
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

/// The object or list that a text is.
fn document(text: &str) -> Option<Value> {
    text.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str(text).ok())?
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_taken_out_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "in-a-file\n").unwrap();
        let conf = configuration(&file);
        let mut secrets = Secrets::default();

        let clean = secrets.take_from(&conf).to_string();

        let in_keys = ["hyphenated", "in-camels", "dotted", "of-a-phrase", "shared-before"];
        let in_urls = ["with,a-comma", "two,com,mas", "behind-a-bare-one"];
        let others = [
            "in-a-",
            "a-token",
            "BEGIN",
            "one-of-a-list",
            "84729155",
            "inside-of-one",
            "77812",
            "of-the-environment",
            "behind-a-flag",
            "no-number",
            "below-a-name",
            "by-the-name",
            "below-a-type",
            "deep-below",
            "of-an-inner",
            "with,a-comma-more",
            "of-a-header",
            "behind-its-scheme",
        ];
        let log = "in-a-\"key\" in-a-file in-a-url a-token one-of-a-list in-a-\\\"key\\\" 84729155";
        let log =
            format!("{log} below-a-name deep-below of-an-inner of-a-header behind-its-scheme");
        let log = format!("{log} {} {}", in_keys.join(" "), in_urls.join(" "));
        let log = secrets.removed_from(&log);
        for secret in others.into_iter().chain(in_keys).chain(in_urls) {
            assert!(!clean.contains(secret), "{secret}: {clean}");
            assert!(!log.contains(secret), "{secret}: {log}");
        }
        for kept in [
            "/etc/margay/key.pem",
            "/etc/margay/api.key",
            "margay",
            "1400",
            "3600",
            "90d",
            "86400",
            "true",
            "DB_PASSWORD",
            "plain-mode",
            "plain-number",
            "inner-mode",
            "{ \\\"mode\\\": \\\"untouched\\\"  }",
            "run --password=",
            "X-Api-Key: ",
        ] {
            assert!(clean.contains(kept), "{kept}: {clean}");
        }
        for host in 1..=7 {
            assert!(clean.contains(&format!("10.0.0.{host}:2379")), "{host}: {clean}");
        }
    }

    #[test]
    fn what_was_found_is_taken_out_of_documents_and_lines() {
        let mut secrets = Secrets::default();
        let url = "https://u:in-a-url@10.0.0.2:2379";
        let found = json!({"db_passwd": 84_729_155, "pin_passwd": 1, "etcd_endpoints": url});
        let _clean = secrets.take_from(&found);

        let document = json!({"84729155": [84_729_155, 7], "text": "in-a-url"});
        let removed = json!({REMOVED: [REMOVED, 7], "text": REMOVED});
        assert_eq!(secrets.removed_from_document(document), removed);
        let lines = "{\"password\":\"x1\",\"verb\":\"ADD\"}\nsaid password: x2 x3\nverb=ADD\n";
        let clean =
            "{\"password\":\"(removed)\",\"verb\":\"ADD\"}\nsaid password: (removed)\nverb=ADD\n";
        assert_eq!(secrets.removed_from_lines(lines), clean);
        assert_eq!(secrets.removed_from("verb 1 of 11"), "verb 1 of 11", "too short to be told");
    }

    /// A secret in every place, and beside it what is none.
    fn configuration(password_file: &Path) -> Value {
        json!({
            "etcd_username": "margay",
            "etcd_password": "in-a-\"key\"",
            "etcd_password_file": password_file,
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
            "mtu": 1400, "token_ttl": 3600, "password_max_age": "90d", "password_min": "no-number",
            "use_token": true, "secrets": {"rotate_seconds": 86_400, "one": "inside-of-one", "pin": 77_812},
            "env": [{"name": "DB_PASSWORD", "value": "of-the-environment"}, {"name": "MODE", "value": "plain-mode"}],
            "args": ["--token", "behind-a-flag", "--mtu", "plain-number"],
            "tokens_by_name": {"a": "below-a-name", "name": "by-the-name"}, "secretsByType": [["below-a-type"]],
            "tokens_by_file": {"a": {"b": "deep-below"}},
            "inner": "{\"mode\": \"inner-mode\", \"db\": [{\"password\": \"of-an-inner\"}]}",
            "kept": "{ \"mode\": \"untouched\"  }",
            "command": "run --password=with,a-comma-more", "header": "X-Api-Key: of-a-header",
            "other_header": "Authorization: Bearer behind-its-scheme",
        })
    }
}
