//! How a secret is told: by the name of what has it, or by its own looks.
//!
//! A name is read as the words that it is made of, in camels, with hyphens or otherwise, so that a tokenizer is not a
//! token, and the file that has a password, or the time that a token is good for, is not one either.

use serde_json::Value;

/// A word that has one of these in it names a secret.
const ANYWHERE: [&str; 11] = [
    "password",
    "passphrase",
    "passwd",
    "passcode",
    "credential",
    "token",
    "secret",
    "psk",
    "authorization",
    "cookie",
    "bearer",
];
/// So does one that has one of these in it, and two words that end with one together: api-key.
const OF_TWO_WORDS: [&str; 8] = [
    "apikey",
    "privatekey",
    "accesskey",
    "keydata",
    "authkey",
    "sharedkey",
    "signingkey",
    "encryptionkey",
];
/// But for these.
const HARMLESS: [&str; 3] = ["tokeniz", "tokenis", "secretar"];
/// One that is one of these does.
const ALONE: [&str; 4] = ["auth", "pass", "pwd", "jwt"];
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
/// The units that a number may be written with.
const UNITS: [&str; 29] = [
    "", "ns", "us", "ms", "s", "sec", "seconds", "m", "min", "minutes", "h", "hours", "d", "days",
    "w", "y", "b", "k", "kb", "kib", "mb", "mib", "g", "gb", "gib", "t", "tb", "tib", "bytes",
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
        let pair = |at: &usize| {
            let both = words[*at..*at + 2].concat();
            OF_TWO_WORDS.iter().any(|name| both.trim_end_matches('s').ends_with(name))
        };
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
    named(name) == Named::Secret || words(name).iter().any(|word| is_secret(word))
}

fn is_secret(word: &str) -> bool {
    let rest = HARMLESS.iter().fold(word.to_owned(), |word, harmless| word.replace(harmless, ""));
    anywhere().any(|name| rest.contains(name))
        || ALONE.contains(&word)
        || word.strip_suffix('s').is_some_and(|one| ALONE.contains(&one))
}

/// What names a secret wherever it is in a word.
fn anywhere() -> impl Iterator<Item = &'static str> {
    ANYWHERE.into_iter().chain(OF_TWO_WORDS)
}

/// In lower case, without digits at their ends.
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
    let words = words.iter().map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).flat_map(parts).collect()
}

/// Two of one that says what it is of a secret: of `secretname`, `secret` and `name`.
fn parts(word: &str) -> Vec<String> {
    for name in anywhere() {
        if let Some((_, behind)) = word.rsplit_once(name)
            && [&FILES[..], &ABOUT, &MEASURES].concat().contains(&behind)
        {
            let (secret, behind) = word.split_at(word.len() - behind.len());
            return vec![secret.to_owned(), behind.to_owned()];
        }
    }
    vec![word.to_owned()]
}

/// Whether it is a number, with a unit or without: `90`, `1h30m`, `5 MiB`.
pub(super) fn is_measure(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::String(text) => {
            text.len() <= 12
                && text.starts_with(|c: char| c.is_ascii_digit())
                && text
                    .split(|c: char| c.is_ascii_digit() || ". ".contains(c))
                    .all(|unit| UNITS.contains(&unit.to_ascii_lowercase().as_str()))
        }
        _ => false,
    }
}

/// A text without what looks like a secret, and what that was. What a secret's name stands before is one to the end.
pub(super) fn cleaned(text: &str, removed: &str) -> (String, Vec<String>) {
    if text.contains("-----BEGIN") {
        return (removed.to_owned(), vec![text.to_owned()]);
    }
    let (mut clean, mut secrets, mut from) = (String::new(), Vec::new(), 0);
    while let Some((start, end)) = next_value(text, from) {
        clean += &without_words(&text[from..start], removed, &mut secrets);
        clean += removed;
        let value = text[start..end].trim_end_matches(is_around_a_value);
        secrets.push(value.to_owned());
        // Elsewhere it may stand by itself.
        let mut words = value.split([' ', '\t', '\n', '"', ',']);
        secrets.extend(words.find(|word| !is_a_scheme(word)).map(str::to_owned));
        from = end;
    }
    clean += &without_words(&text[from..], removed, &mut secrets);
    (clean, secrets)
}

/// Where behind `from` the next value of a secret's name begins and ends: of `name=value`, `name: value`, the same in
/// quotes, or `--name value`.
fn next_value(text: &str, from: usize) -> Option<(usize, usize)> {
    let separators = text[from..].match_indices([':', '=', ' ']);
    separators.map(|(at, _)| from + at).find_map(|at| {
        let is_flags = text[at..].starts_with(' ');
        let before = match is_flags {
            true => &text[..at],
            false => text[..at].trim_end_matches(is_around_a_value),
        };
        let start = before.trim_end_matches(is_of_a_name).len();
        let name = &before[start..];
        if start < from || (is_flags && !name.starts_with('-')) {
            return None;
        }
        let behind = text[at + 1..].trim_start_matches(is_around_a_value);
        let value = text.len() - behind.len();
        let word = text[..start].rfind(char::is_whitespace).map_or(0, |space| space + 1);
        let is_in_a_url = text[word..start].contains("://");
        let rest_of_word = text[at..].split(char::is_whitespace).next().unwrap_or_default();
        // Of a URL's password, which is taken out with all that is in it.
        let is_before_a_host = is_in_a_url && rest_of_word.contains('@');
        if behind.is_empty() || is_before_a_host || !has_a_secret(name, behind) {
            return None;
        }
        let is_in_a_query = is_in_a_url && text[..start].ends_with(['?', '&']);
        let ends = |c: char| c == '&' || c == '"' || c.is_whitespace();
        let end = match behind.find(ends).filter(|_| is_in_a_query) {
            Some(end) => value + end,
            None => text.trim_end().len(),
        };
        (value < end).then_some((value, end))
    })
}

fn has_a_secret(name: &str, behind: &str) -> bool {
    match named(name) {
        Named::Secret => true,
        Named::Measure if is_about_a_secret(name) => {
            let is_end = |c: char| c.is_whitespace() || "\"',;&})]".contains(c);
            let value = behind.split(is_end).next().unwrap_or_default();
            !is_measure(&Value::from(value))
        }
        _ => false,
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

fn is_around_a_value(c: char) -> bool {
    c.is_whitespace() || "\"'\\".contains(c)
}

fn without_words(text: &str, removed: &str, secrets: &mut Vec<String>) -> String {
    let mut clean = String::new();
    let (mut is_value, mut is_next) = (true, false);
    for word in text.split_inclusive(char::is_whitespace) {
        let bare = word.trim_end();
        let space = &word[bare.len()..];
        if is_next && !bare.is_empty() {
            secrets.push(bare.to_owned());
            clean += removed;
        } else {
            clean += &without_urls(bare, removed, secrets);
        }
        clean += space;
        // Of an HTTP header's value, what stands behind its first word.
        is_next = is_value && is_a_scheme(bare);
        is_value = bare.ends_with([':', '=']);
    }
    clean
}

/// Of an HTTP header's value.
fn is_a_scheme(word: &str) -> bool {
    ["bearer", "basic"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// A list with commas, of which one or the other may be an URL.
fn without_urls(word: &str, removed: &str, secrets: &mut Vec<String>) -> String {
    let clean = urls(word).into_iter().map(|url| {
        let Some((scheme, rest)) = url.split_once("://") else {
            return without_values(url, removed, secrets);
        };
        // Before the query: a password may have a question mark in it.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => {
                let password = user.split_once(':').map_or(user, |(_, password)| password);
                secrets.push(password.to_owned());
                (format!("{removed}@"), rest)
            }
            None => (String::new(), rest),
        };
        let fields = rest.split_inclusive(['?', '&']).map(|field| {
            let bare = field.trim_end_matches(['?', '&']);
            without_values(bare, removed, secrets) + &field[bare.len()..]
        });
        let rest: String = fields.collect();
        format!("{}://{user}{rest}", without_values(scheme, removed, secrets))
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
            "secretkey",
            "SECRETKEY",
            "s3secretkey",
            "secretvalue",
            "tokenvalue",
            "secretid",
            "pskhex",
            "apikeyvalue",
            "token1",
            "token2",
            "secret2",
            "apikey1",
            "api_key_1",
            "X-Api-Key",
            "auths",
        ] {
            assert_eq!(named(name), Named::Secret, "{name}");
        }
        for name in ["etcd_password_file", "apiKeyPath", "tokenFile", "tokenfile", "secretpath"] {
            assert_eq!(named(name), Named::File, "{name}");
        }
        for name in
            ["token_ttl", "passwordMinLength", "secret_rotation_seconds", "tokenTTL", "tokenttl"]
        {
            assert_eq!(named(name), Named::Measure, "{name}");
        }
        for name in [
            "tokenizer",
            "tokenizers",
            "tokenization",
            "secretary",
            "secretname",
            "groups_key",
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
            [json!("hunter2"), json!("12345678901234"), json!("7a/b"), json!("1a2c3e4f"), json!("")]
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
            ("--mtu=1400 --token=abc def", "--mtu=1400 --token=-"),
            ("--mtu 1400 --token abc", "--mtu 1400 --token -"),
            ("PATH=/bin\nDB_PASSWORD=abc\ndef\n", "PATH=/bin\nDB_PASSWORD=-\n"),
            ("Authorization: Bearer abc.def done", "Authorization: -"),
            ("Authorization=Bearer abcdef", "Authorization=-"),
            ("X-Trace: Bearer abcdef done", "X-Trace: Bearer - done"),
            ("X-Api-Key: abc", "X-Api-Key: -"),
            ("--password=ab,cd-rest", "--password=-"),
            ("DB_PASSWORD=abc://rest", "DB_PASSWORD=-"),
            ("said {\"password\":\"hunter2\"}", "said {\"password\":\"-"),
            ("said {\\\"password\\\": \\\"hunter2\\\"}", "said {\\\"password\\\": \\\"-"),
            ("my password: hunter2", "my password: -"),
            ("password = 'hunter2'", "password = '-"),
            ("https://u:pa?ss@h:2379 x", "https://-@h:2379 x"),
            ("https://u:my-token=ss@h:2379/a?b=1", "https://-@h:2379/a?b=1"),
            ("https://h/p?token=abc&mail=a@b", "https://-@b"),
            ("token_max=abcdef", "token_max=-"),
            ("a password: is missing", "a password: -"),
            ("password:\n", "password:\n"),
            ("token_file=/etc/x tokenizer: y", "token_file=/etc/x tokenizer: y"),
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
