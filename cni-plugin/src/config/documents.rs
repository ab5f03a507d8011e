//! Tests that the documents say what the code does.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::keys::{AGENT_KEYS, Effect, IPAM_KEYS, Key, Kind, NETCONF_KEYS};
use super::*;

const TABLES: &str = include_str!("../../../docs/configuration.md");
const AGENT: &str = include_str!("../../../docs/agent.md");
const AGENT_CONF: &str = include_str!("../../../conf/agent.json");
const SCHEMA: &str = include_str!("../../../docs/netconf.schema.json");
const KUBERNETES: &str = include_str!("../../../docs/kubernetes.md");
const CONFLIST: &str = include_str!("../../../conf/10-margay.conflist");

/// Path, type and default of a key, as a document has them.
type Row = (String, String, String);

fn all_keys() -> impl Iterator<Item = &'static Key> {
    NETCONF_KEYS.iter().chain(IPAM_KEYS)
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "string",
        Kind::Truth => "boolean",
        Kind::Number => "integer",
        Kind::Texts => "list of strings",
        Kind::Objects => "list of objects",
        Kind::Object | Kind::OpenObject | Kind::CheckedLater => "object",
        Kind::OpenList => "list",
    }
}

fn in_code(effect: Effect) -> BTreeSet<Row> {
    all_keys().filter(|key| key.effect == effect).map(row).collect()
}

fn row(key: &Key) -> Row {
    (key.path.into(), type_name(key.kind).into(), key.default.into())
}

/// Rows of a document's tables whose number of columns is `columns`.
fn in_tables(document: &'static str, columns: usize) -> BTreeSet<Row> {
    let cells = |line: &'static str| -> Vec<&str> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()
    };
    document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(cells)
        .filter(|cells| cells.len() == columns)
        .map(|cells| {
            let default = if columns > 3 && cells[2] != "—" { cells[2] } else { "" };
            (cells[0].into(), cells[1].into(), default.into())
        })
        .collect()
}

#[test]
fn the_tables_name_the_keys_types_and_defaults_of_the_code() {
    assert_eq!(in_tables(TABLES, 6), in_code(Effect::Used));
    assert_eq!(in_tables(TABLES, 3), in_code(Effect::Unused));
}

#[test]
fn the_agents_table_names_the_keys_types_and_defaults_of_the_code() {
    assert_eq!(in_tables(AGENT, 5), AGENT_KEYS.iter().map(row).collect());
}

#[test]
fn the_agents_shipped_configuration_is_valid() {
    let document: Value = serde_json::from_str(AGENT_CONF).unwrap();

    AgentConf::from_map(document.as_object().unwrap()).unwrap();
}

#[test]
fn the_schema_names_the_keys_types_and_defaults_of_the_code() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut rows = BTreeSet::new();

    properties(&schema, "", &mut rows);
    properties(&schema["properties"]["ipam"]["then"], "ipam.", &mut rows);

    let all: BTreeSet<_> = in_code(Effect::Used).union(&in_code(Effect::Unused)).cloned().collect();
    assert_eq!(rows, all);
}

/// The rows of an object of the schema and of what is in it. `ipam` of no particular plugin is left
/// out.
fn properties(schema: &Value, prefix: &str, rows: &mut BTreeSet<Row>) {
    for (name, property) in schema["properties"].as_object().unwrap() {
        let path = format!("{prefix}{name}");
        let default = match &property["default"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let kind = match (&property["type"], &property["items"]["type"], &property["enum"]) {
            (_, _, truth) if *truth == json!([true, false, "true", "false"]) => "boolean",
            (Value::Array(_), ..) => "list",
            (_, Value::String(item), _) if item == "string" => "list of strings",
            (_, Value::String(_), _) => "list of objects",
            (kind, ..) => kind.as_str().unwrap(),
        };
        rows.insert((path.clone(), kind.into(), default));
        if kind == "list of objects" {
            properties(&property["items"], &format!("{path}[]."), rows);
        } else if path != "ipam" && property["properties"].is_object() {
            properties(property, &format!("{path}."), rows);
        }
    }
}

#[test]
fn the_documented_defaults_are_the_codes() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut document = json!({
        "name": "n", "type": "margay", "nodename": "a",
        "ipam": { "type": "margay-ipam", "pools": [{ "cidr": "10.0.0.0/16" }] },
    });
    let silent = NetConf::from_map(document.as_object().unwrap()).unwrap();

    for (name, property) in schema["properties"].as_object().unwrap() {
        if let Some(default) = property.get("default") {
            document[name] = default.clone();
        }
    }

    let spoken = NetConf::from_map(document.as_object().unwrap()).unwrap();
    assert_eq!(silent, spoken);
}

#[test]
fn the_shipped_conflist_is_valid_and_every_key_of_it_has_an_effect() {
    let list: Value = serde_json::from_str(CONFLIST).unwrap();
    let mut entry = list["plugins"][0].clone();
    entry["name"] = list["name"].clone();
    entry["cniVersion"] = list["cniVersion"].clone();

    let netconf = NetConf::from_map(entry.as_object().unwrap()).unwrap();

    assert_eq!(netconf.unused_keys(), [] as [&str; 0]);
    let IpamConf::Builtin(pools) = netconf.ipam else { panic!("not margay-ipam") };
    assert!(pools.assign_ipv4 && pools.assign_ipv6);
}

#[test]
fn the_network_for_kubernetes_works() {
    let json = KUBERNETES.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let list: Value = serde_json::from_str(json).unwrap();
    let mut entry = list["plugins"][0].clone();
    entry["name"] = list["name"].clone();
    entry["cniVersion"] = list["cniVersion"].clone();

    NetConf::from_map(entry.as_object().unwrap()).unwrap();
}

#[test]
fn the_example_for_other_plugins_works() {
    let json = TABLES.split("```json").nth(2).unwrap().split("```").next().unwrap();
    let document: Value = serde_json::from_str(json).unwrap();

    let netconf = IpamNetConf::from_map(document.as_object().unwrap()).unwrap();

    let gateways: Vec<_> = netconf.pools.usable.iter().filter_map(|pool| pool.gateway()).collect();
    assert_eq!(
        gateways,
        ["10.245.0.1", "fd00:10:245::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap())
    );
}
