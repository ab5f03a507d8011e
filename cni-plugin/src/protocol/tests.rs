use rscni_types::types::{Interface, IpConfig};
use serde_json::json;

use super::*;
use crate::config::{ConfigError, NetConf};

/// Reads its configuration as margay does, and answers.
struct Answering;

impl Plugin for Answering {
    fn add(&self, call: &Call, _: &Target) -> Result<CNIResult, Error> {
        NetConf::from_map(&call.config)?;
        Ok(CNIResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:05".into(),
                mtu: Some(1500),
                sandbox: Some("/run/netns/x".into()),
                socket_path: None,
                pci_id: None,
            }],
            ips: vec![IpConfig {
                interface: Some(0),
                address: "10.244.0.5/32".parse().unwrap(),
                gateway: None,
            }],
            ..CNIResult::default()
        })
    }
    fn del(&self, call: &Call, _: &Target) -> Result<(), Error> {
        NetConf::from_map(&call.config)?;
        Ok(())
    }
    fn check(&self, _: &Call, _: &Target) -> Result<(), Error> {
        Ok(())
    }
    fn gc(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }
    fn status(&self, _: &Call) -> Result<(), Error> {
        let error = ConfigError::Missing { field: "x".into(), reason: "y" };
        Err(Error::Unavailable(Box::new(error.into())))
    }
}

fn environment(changes: &[(&'static str, &str)]) -> Environment {
    let mut variables = HashMap::from([
        (CNI_COMMAND, OsString::from("ADD")),
        (CNI_CONTAINERID, "c1".into()),
        (CNI_NETNS, "/run/netns/x".into()),
        (CNI_IFNAME, "eth0".into()),
        (CNI_PATH, "/opt/cni/bin:/usr/lib/cni".into()),
    ]);
    variables.extend(changes.iter().map(|(name, value)| (*name, OsString::from(value))));
    Environment(variables)
}

fn stdin(version: &str) -> Vec<u8> {
    json!({
        "cniVersion": version, "name": "pods", "type": "margay", "nodename": "a", "mtu": 1400,
        "runtimeConfig": { "ips": ["10.244.0.9"], "mac": "02:00:00:00:00:09" },
        "args": { "cni": { "labels": [{ "key": "a", "value": "é" }] } },
        "prevResult": { "ips": [{ "version": "4", "address": "10.0.0.1/8" }] },
        "ipam": { "type": "margay-ipam", "pools": [{ "cidr": "10.244.0.0/16", "block_size": 28 }] },
    })
    .to_string()
    .into_bytes()
}

/// What goes to stdout, and whether it is a success.
fn answer(environment: &Environment, stdin: &[u8]) -> (Value, bool) {
    let mut declared = None;
    let result = serve(&Answering, environment, stdin, &mut declared);
    let success = result.is_ok();
    let text = result.unwrap_or_else(|error| error_json(declared, &error));
    let document = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (document, success)
}

#[track_caller]
fn refused(environment: &Environment, stdin: &[u8]) -> (u64, String) {
    let (document, success) = answer(environment, stdin);
    assert!(!success, "{document}");
    let details = document["details"].as_str().unwrap().to_owned();
    (document["code"].as_u64().unwrap(), details)
}

#[test]
fn version_needs_nothing_and_lists_four_versions() {
    let environment = Environment(HashMap::from([(CNI_COMMAND, OsString::from("VERSION"))]));

    let (document, success) = answer(&environment, b"not json");

    assert!(success);
    assert_eq!(
        document,
        json!({ "cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] })
    );
}

#[test]
fn an_error_about_the_environment_carries_the_version_that_was_asked_for() {
    for changes in [[(CNI_COMMAND, "ADDD")], [(CNI_IFNAME, "")]] {
        let (document, success) = answer(&environment(&changes), &stdin("0.4.0"));
        assert!(!success);
        assert_eq!(document["cniVersion"], "0.4.0");
    }
}

#[test]
fn a_result_has_the_layout_of_the_version_that_was_asked_for() {
    for version in ["0.3.1", "0.4.0"] {
        let (document, _) = answer(&environment(&[]), &stdin(version));
        assert_eq!(document["cniVersion"], version);
        assert_eq!(document["ips"][0]["version"], "4");
        assert_eq!(document["interfaces"][0]["mtu"], Value::Null);
        assert_eq!(document["dns"], json!({}));
    }
    for version in ["1.0.0", "1.1.0"] {
        let (document, _) = answer(&environment(&[]), &stdin(version));
        assert_eq!(document["cniVersion"], version);
        assert_eq!(document["ips"][0], json!({ "address": "10.244.0.5/32", "interface": 0 }));
    }
}

#[test]
fn an_error_carries_the_version_that_was_asked_for() {
    let text = String::from_utf8(stdin("0.4.0")).unwrap().replace("mtu", "mtuu");

    let (document, _) = answer(&environment(&[]), text.as_bytes());

    assert_eq!(document["cniVersion"], "0.4.0");
    assert_eq!(document["code"], 7);
    assert_eq!(
        document["details"],
        "network configuration: mtuu is not a key margay knows, did you mean mtu?"
    );
}

#[test]
fn versions_that_margay_does_not_speak_are_of_code_1() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "", "9"] {
        let (code, details) = refused(&environment(&[]), &stdin(version));
        assert_eq!(code, 1, "{version}: {details}");
        assert!(details.contains("margay supports 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{details}");
    }
    assert_eq!(refused(&environment(&[]), &stdin("one")).0, 6);
    assert_eq!(refused(&environment(&[]), br#"{"cniVersion": 1.1}"#).0, 6);
}

#[test]
fn a_verb_that_the_version_does_not_have_is_of_code_1() {
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
        let (code, details) = refused(&environment(&[(CNI_COMMAND, verb)]), &stdin(version));
        assert_eq!((code, details), (1, format!("cniVersion \"{version}\" does not have {verb}")));
    }
}

#[test]
fn missing_variables_are_all_named() {
    let bare = Environment(HashMap::from([(CNI_COMMAND, OsString::from("ADD"))]));
    let (code, details) = refused(&bare, &stdin("1.1.0"));
    assert_eq!(code, 4);
    assert!(details.contains("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"), "{details}");
}

#[test]
fn del_needs_no_namespace_and_no_sane_args_or_prev_result() {
    let changes = [(CNI_COMMAND, "DEL"), (CNI_NETNS, ""), (CNI_ARGS, "garbage")];
    let text = String::from_utf8(stdin("1.0.0")).unwrap().replace("10.0.0.1/8", "garbage");

    let (document, success) = answer(&environment(&changes), text.as_bytes());

    assert!(success, "{document}");
    assert_eq!(refused(&environment(&[(CNI_ARGS, "garbage")]), &stdin("1.0.0")).0, 4);
}

#[test]
fn unusable_variables_are_named_with_their_value() {
    for (name, value) in [
        (CNI_COMMAND, "MAKE"),
        (CNI_CONTAINERID, "../c1"),
        (CNI_IFNAME, "a-name-of-16-chars"),
        (CNI_IFNAME, "a/b"),
        (CNI_IFNAME, ".."),
    ] {
        let (code, details) = refused(&environment(&[(name, value)]), &stdin("1.1.0"));
        assert_eq!(code, 4);
        assert!(
            details.starts_with(&format!("{name}={value:?}: must be")) || name == CNI_CONTAINERID
        );
        assert!(details.contains(value), "{details}");
    }
    use std::os::unix::ffi::OsStringExt;
    let mut broken = environment(&[]);
    broken.0.insert(CNI_CONTAINERID, OsString::from_vec(vec![b'c', 0xff]));
    assert_eq!(refused(&broken, &stdin("1.1.0")).0, 4);
}

#[test]
fn status_answers_with_code_50() {
    let changes = [(CNI_COMMAND, "STATUS"), (CNI_CONTAINERID, ""), (CNI_IFNAME, "")];

    let (code, details) = refused(&environment(&changes), &stdin("1.1.0"));

    assert_eq!(code, 50);
    assert_eq!(details, "an ADD would fail: network configuration: x is missing: y");
}

#[test]
fn hostile_input_is_an_error_of_code_6_or_7() {
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let deep_object = "{\"a\":".repeat(100_000).into_bytes();
    let long_name =
        String::from_utf8(stdin("1.1.0")).unwrap().replace("pods", &"é".repeat(1 << 19));
    let long_key = format!(r#"{{"cniVersion":"1.1.0","{}":1}}"#, "k".repeat(1 << 20));
    let inputs: [&[u8]; 10] = [
        b"",
        b"null",
        b"[]",
        b"\"x\"",
        b"{\"name\": \"\xff\"}",
        b"{\"cniVersion\":\"1.1.0\"} trailing",
        &deep,
        &deep_object,
        long_name.as_bytes(),
        long_key.as_bytes(),
    ];
    for input in inputs {
        let (code, details) = refused(&environment(&[]), input);
        let start: String = details.chars().take(80).collect();
        assert!(code == 6 || code == 7, "{code} for {start}");
    }
}

#[test]
fn an_endless_stdin_is_not_read_to_its_end() {
    let mut declared = None;

    let result = serve(&Answering, &environment(&[]), std::io::repeat(b' '), &mut declared);

    assert!(matches!(result, Err(Error::Protocol(ProtocolError::TooLong))));
}

#[test]
fn no_truncation_and_no_flipped_byte_of_a_configuration_makes_it_panic() {
    let whole = stdin("1.1.0");
    assert!(answer(&environment(&[]), &whole).1);
    for end in 0..whole.len() {
        assert!(!answer(&environment(&[]), &whole[..end]).1, "accepted when cut at {end}");
        for byte in [b'"', b'{', b'0', b'-', 0xff, 0] {
            let mut flipped = whole.clone();
            flipped[end] = byte;
            answer(&environment(&[]), &flipped);
        }
    }
}
