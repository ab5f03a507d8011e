//! How a secret is told: by the name of what has it, or by its own looks.
//!
//! A name is read as the words that it is made of, in camels, with hyphens or otherwise, so that a tokenizer is not a
//! token, and the file that has a password, or the time that a token is good for, is not one either.

use serde_json::Value;

/// A word that has one of these in it names a secret.
const ANYWHERE: [&str; 5] = ["password", "passphrase", "passwd", "passcode", "credential"];
/// One that ends with one of these does, with a plural's s too.
const AT_THE_END: [&str; 13] = [
    "token",
    "secret",
    "psk",
    "apikey",
    "privatekey",
    "accesskey",
    "keydata",
    "authkey",
    "sharedkey",
    "signingkey",
    "encryptionkey",
    "authorization",
    "cookie",
];
/// One that is one of these does.
const ALONE: [&str; 5] = ["auth", "pass", "pwd", "bearer", "jwt"];
/// Behind the word for a secret, one of these says that it is a file's name.
const FILES: [&str; 2] = ["file", "path"];
/// That it is something else of it than itself.
const ABOUT: [&str; 14] = [
    "name",
    "names",
    "namespace",
    "ref",
    "type",
    "url",
    "uri",
    "endpoint",
    "issuer",
    "audience",
    "algorithm",
    "provider",
    "dir",
    "directory",
];
/// That it is a number of something, which may be written with its unit.
const MEASURES: [&str; 18] = [
    "ttl",
    "timeout",
    "expiry",
    "expiration",
    "lifetime",
    "seconds",
    "ms",
    "interval",
    "length",
    "size",
    "bytes",
    "bits",
    "count",
    "max",
    "min",
    "limit",
    "retries",
    "version",
];
/// What may stand before `://`, besides letters and digits.
const OF_A_SCHEME: [char; 3] = ['+', '-', '.'];

/// What a name says of what has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// That it is a secret.
    Secret,
    /// That it is the file with a secret.
    File,
    /// That it is a number of something about a secret.
    Measure,
    /// Nothing.
    Nothing,
}

pub(super) fn named(name: &str) -> Named {
    let words = words(name);
    let Some(last) = words.iter().rposition(|word| is_secret(word)).or_else(|| {
        // api-key, and the like.
        let pair = |at: &usize| is_secret(&words[*at..*at + 2].concat());
        (0..words.len().saturating_sub(1)).rev().find(pair).map(|at| at + 1)
    }) else {
        return match words.last() {
            Some(word) if MEASURES.contains(&word.as_str()) => Named::Measure,
            _ => Named::Nothing,
        };
    };
    let behind = |of: &[&str]| words[last + 1..].iter().any(|word| of.contains(&word.as_str()));
    if behind(&FILES) {
        Named::File
    } else if behind(&MEASURES) {
        Named::Measure
    } else if behind(&ABOUT) {
        Named::Nothing
    } else {
        Named::Secret
    }
}

/// Whether a name has the word for a secret in it, whatever stands behind.
pub(super) fn is_about_a_secret(name: &str) -> bool {
    words(name).iter().any(|word| is_secret(word))
}

fn is_secret(word: &str) -> bool {
    let singular = word.strip_suffix('s').unwrap_or(word);
    ANYWHERE.iter().any(|name| word.contains(name))
        || AT_THE_END.iter().any(|name| word.ends_with(name) || singular.ends_with(name))
        || ALONE.contains(&word)
}

/// In lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = '_';
    for c in name.chars() {
        let is_new = c.is_ascii_uppercase() && !before.is_ascii_uppercase();
        if is_new || !c.is_ascii_alphanumeric() {
            words.push(String::new());
        }
        if let (Some(word), true) = (words.last_mut(), c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether it is a number, with a unit or without: `90`, `1h30m`, `5 MiB`.
pub(super) fn is_measure(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::String(text) => {
            let is_of_one = |c: char| c.is_ascii_alphanumeric() || ". ".contains(c);
            text.len() <= 12
                && text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(is_of_one)
        }
        _ => false,
    }
}

/// A text without what looks like a secret, and what that was.
pub(super) fn cleaned(text: &str, removed: &str) -> (String, Vec<String>) {
    let mut secrets = Vec::new();
    if text.contains("-----BEGIN") {
        return (removed.to_owned(), vec![text.to_owned()]);
    }
    let mut clean = String::new();
    let (mut is_value, mut is_next) = (true, false);
    for word in text.split_inclusive(char::is_whitespace) {
        let bare = word.trim_end();
        let space = &word[bare.len()..];
        if is_next && !bare.is_empty() {
            secrets.push(bare.to_owned());
            clean += removed;
        } else {
            clean += &without_urls(bare, removed, &mut secrets);
        }
        clean += space;
        // Of an HTTP header's value, what stands behind its first word.
        is_next =
            is_value && ["bearer", "basic"].iter().any(|scheme| bare.eq_ignore_ascii_case(scheme));
        is_value = bare.ends_with([':', '=']);
    }
    (clean, secrets)
}

/// A list with commas, of which one or the other may be an URL.
fn without_urls(word: &str, removed: &str, secrets: &mut Vec<String>) -> String {
    let clean = urls(word).into_iter().map(|url| {
        let Some((scheme, rest)) = url.split_once("://") else {
            return without_values(url, removed, secrets);
        };
        let (address, query) =
            rest.split_once('?').map_or((rest, None), |(it, query)| (it, Some(query)));
        let address = match address.rsplit_once('@') {
            Some((user, host)) => {
                let password = user.split_once(':').map_or(user, |(_, password)| password);
                secrets.push(password.to_owned());
                format!("{removed}@{host}")
            }
            None => address.to_owned(),
        };
        let query = query.map(|query| {
            let fields = query.split('&').map(|field| without_values(field, removed, secrets));
            format!("?{}", fields.collect::<Vec<_>>().join("&"))
        });
        format!(
            "{}://{address}{}",
            without_values(scheme, removed, secrets),
            query.unwrap_or_default()
        )
    });
    clean.collect::<Vec<_>>().join(",")
}

/// `name=value`, as in an environment or on a command line; or a token as of RFC 7519 (JWT).
fn without_values(text: &str, removed: &str, secrets: &mut Vec<String>) -> String {
    if let Some((name, value)) = text.split_once('=')
        && named(name) == Named::Secret
        && !value.trim_matches('"').is_empty()
    {
        secrets.push(value.trim_matches('"').to_owned());
        return format!("{name}={removed}");
    }
    if is_jwt(text) {
        secrets.push(text.to_owned());
        return removed.to_owned();
    }
    text.to_owned()
}

/// Its header is the beginning of a JSON document in base64.
fn is_jwt(text: &str) -> bool {
    let is_of_base64 = |c: char| c.is_ascii_alphanumeric() || "-_=".contains(c);
    text.starts_with("eyJ")
        && text.split('.').count() == 3
        && text.split('.').all(|part| part.chars().all(is_of_base64))
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
    fn a_name_is_read_by_its_words() {
        for name in [
            "etcd_password",
            "k8s_auth_token",
            "apiSecret",
            "api-key",
            "APIKey",
            "privateKey",
            "tls.key_data",
            "Passphrase",
            "wifi_psk",
            "db_passwd",
            "authtoken",
            "clientsecret",
            "tokens",
            "AWS_SECRET_ACCESS_KEY",
            "auth",
            "--token",
            "secret_id",
            "registryCredentials",
            "Set-Cookie",
            "mypassword2",
            "accessKeys",
        ] {
            assert_eq!(named(name), Named::Secret, "{name}");
        }
        for name in ["etcd_password_file", "apiKeyPath", "tokenFile"] {
            assert_eq!(named(name), Named::File, "{name}");
        }
        for name in ["token_ttl", "passwordMinLength", "secret_rotation_seconds", "tokenTTL"] {
            assert_eq!(named(name), Named::Measure, "{name}");
        }
        for name in [
            "tokenizer",
            "secretary",
            "key",
            "keys",
            "monkey",
            "public_key",
            "secretName",
            "token_endpoint",
            "author",
            "passthrough",
            "bypass",
            "mtu",
            "etcd_cert_file",
            "spin",
            "authority",
        ] {
            assert_eq!(named(name), Named::Nothing, "{name}");
        }
    }

    #[test]
    fn a_measure_is_a_number_with_a_unit_or_without() {
        for measure in [json!(3600), json!("90"), json!("1h30m"), json!("5 MiB"), json!("2.5s")] {
            assert!(is_measure(&measure), "{measure}");
        }
        for other in
            [json!("hunter2"), json!("12345678901234"), json!("7a/b"), json!(""), json!([1])]
        {
            assert!(!is_measure(&other), "{other}");
        }
    }

    #[test]
    fn what_looks_like_a_secret_is_one_and_the_rest_of_a_text_stays() {
        for (text, clean) in [
            ("-----BEGIN PRIVATE KEY-----\nx", "-"),
            ("https://u:p4ss@h:1/a,https://h2?x=1", "https://-@h:1/a,https://h2?x=1"),
            ("https://h/p?user=me&access_token=abc&x=1", "https://h/p?user=me&access_token=-&x=1"),
            ("--token=abc --mtu=1400", "--token=- --mtu=1400"),
            ("DB_PASSWORD=abc\nPATH=/bin", "DB_PASSWORD=-\nPATH=/bin"),
            ("Authorization: Bearer abc.def done", "Authorization: Bearer - done"),
            ("a eyJhbGciOiJub25lIn0.e30.sig b", "a - b"),
            ("token_ttl=60 mtu=1400 a=b", "token_ttl=60 mtu=1400 a=b"),
            ("10.0.0.6:2379,10.0.0.7:2379", "10.0.0.6:2379,10.0.0.7:2379"),
            ("a basic network", "a basic network"),
            ("Basic dTpw", "Basic -"),
        ] {
            assert_eq!(cleaned(text, "-").0, clean, "{text}");
        }
    }
}
