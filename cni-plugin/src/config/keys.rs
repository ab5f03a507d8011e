//! Every key margay knows, and the walk that finds those it does not.
//!
//! Invariant: this table, the table in `docs/configuration.md` and `docs/netconf.schema.json` name
//! the same keys with the same types and defaults; a test compares them.

use super::ConfigError;
use super::field::{Field, Object, shortened};

/// JSON type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// `true`, `false`, or those words as a string.
    Truth,
    /// A whole number, not negative.
    Number,
    /// A list of strings.
    Texts,
    /// A list of objects whose keys are in the table.
    Objects,
    /// An object whose keys are in the table.
    Object,
    /// An object whose keys belong to somebody else.
    OpenObject,
    /// A list whose items belong to somebody else.
    OpenList,
    /// An object that is checked when a verb reads it: a DEL must not fail because of it.
    CheckedLater,
}

/// What margay does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It has the effect that the documents describe.
    Used,
    /// It is accepted, has no effect, and is reported by `NetConf::unused_keys`.
    Unused,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Path, with `[]` after the name of a list of objects.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// As the documents write it; empty if there is none.
    #[cfg_attr(not(test), expect(dead_code, reason = "the test of the documents reads it"))]
    pub(crate) default: &'static str,
    pub(crate) effect: Effect,
}

const fn used(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, kind, default, effect: Effect::Used }
}

const fn unused(path: &'static str, kind: Kind) -> Key {
    Key { path, kind, default: "", effect: Effect::Unused }
}

use Kind::{
    CheckedLater, Number, Object as Obj, Objects, OpenList, OpenObject, Text, Texts, Truth,
};

/// Keys of the network configuration outside `ipam`.
pub(crate) const NETCONF_KEYS: &[Key] = &[
    // The CNI specification's.
    used("cniVersion", Text, ""),
    used("name", Text, ""),
    used("type", Text, ""),
    used("ipam", OpenObject, ""),
    used("dns", Obj, ""),
    used("dns.nameservers", Texts, "[]"),
    used("dns.domain", Text, ""),
    used("dns.search", Texts, "[]"),
    used("dns.options", Texts, "[]"),
    used("capabilities", OpenObject, ""),
    used("runtimeConfig", OpenObject, ""),
    used("args", OpenObject, ""),
    used("prevResult", CheckedLater, ""),
    used("cni.dev/valid-attachments", OpenList, ""),
    used("cni.dev/attachments", OpenList, ""),
    unused("cniVersions", Texts),
    unused("ipMasq", Truth),
    unused("disableCheck", Truth),
    unused("disableGC", Truth),
    // margay's own.
    used("dataplane", Text, "ebpf"),
    used("attach", Text, "clsact"),
    used("answer_any_arp", Truth, "false"),
    used("default_route", Truth, ""),
    used("state_dir", Text, "/var/lib/margay"),
    used("run_dir", Text, "/run/margay"),
    used("bpffs_root", Text, "/sys/fs/bpf/margay"),
    used("max_pods", Number, "65536"),
    used("max_flows", Number, "131072"),
    // Calico's.
    used("mtu", Number, "0"),
    used("num_queues", Number, "0"),
    used("nodename", Text, ""),
    used("hostname", Text, ""),
    used("datastore_type", Text, "local"),
    used("log_level", Text, "info"),
    used("log_file_path", Text, ""),
    used("container_settings", Obj, ""),
    used("container_settings.allow_ip_forwarding", Truth, "false"),
    used("policy", Obj, ""),
    used("policy.type", Text, ""),
    unused("policy.k8s_api_root", Text),
    unused("policy.k8s_auth_token", Text),
    unused("policy.k8s_client_certificate", Text),
    unused("policy.k8s_client_key", Text),
    unused("policy.k8s_certificate_authority", Text),
    used("etcd_endpoints", Text, ""),
    used("etcd_discovery_srv", Text, ""),
    used("etcd_authority", Text, ""),
    used("etcd_scheme", Text, "http"),
    used("etcd_key_file", Text, ""),
    used("etcd_cert_file", Text, ""),
    used("etcd_ca_cert_file", Text, ""),
    used("etcd_username", Text, ""),
    used("etcd_password", Text, ""),
    used("etcd_password_file", Text, ""),
    used("etcd_prefix", Text, "/margay/v1/"),
    used("etcd_connect_timeout_ms", Number, "2000"),
    used("etcd_request_timeout_ms", Number, "5000"),
    used("etcd_verb_timeout_ms", Number, "15000"),
    used("delegate", OpenObject, ""),
    unused("nodename_file", Text),
    unused("nodename_file_optional", Truth),
    unused("log_file_max_size", Number),
    unused("log_file_max_age", Number),
    unused("log_file_max_count", Number),
    unused("kubernetes", OpenObject),
    unused("feature_control", OpenObject),
    unused("dataplane_options", OpenObject),
    unused("include_default_routes", Truth),
    unused("ipam_lock_file", Text),
    unused("readiness_gates", Texts),
    unused("policy_setup_timeout_seconds", Number),
    unused("endpoint_status_dir", Text),
    unused("calico_api_group", Text),
    unused("device_type", Text),
    unused("require_mtu_file", Truth),
    unused("mode", Text),
    unused("vxlan_mac_prefix", Text),
    unused("vxlan_vni", Number),
    unused("windows_pod_deletion_timestamp_timeout", Number),
    unused("windows_use_single_network", Truth),
    unused("windows_disable_default_deny_all_policy", Truth),
    unused("windows_loopback_DSR", Truth),
];

/// Keys of `ipam` when its type is `margay-ipam`. Another plugin's are not looked at.
pub(crate) const IPAM_KEYS: &[Key] = &[
    used("ipam.type", Text, ""),
    used("ipam.assign_ipv4", Truth, ""),
    used("ipam.assign_ipv6", Truth, ""),
    used("ipam.ipv4_pools", Texts, "[]"),
    used("ipam.ipv6_pools", Texts, "[]"),
    used("ipam.pools", Objects, "[]"),
    used("ipam.pools[].cidr", Text, ""),
    used("ipam.pools[].name", Text, ""),
    used("ipam.pools[].block_size", Number, ""),
    used("ipam.pools[].disabled", Truth, "false"),
    used("ipam.pools[].nat_outgoing", Truth, "false"),
    used("ipam.pools[].vxlan_mode", Text, "Never"),
    used("ipam.strict_affinity", Truth, "false"),
    used("ipam.state_dir", Text, ""),
    used("ipam.run_dir", Text, ""),
    used("ipam.nodename", Text, ""),
    used("ipam.log_level", Text, ""),
    used("ipam.log_file_path", Text, ""),
    unused("ipam.name", Text),
    unused("ipam.subnet", Text),
    unused("ipam.ip_pools_label_selector_keys", Texts),
];

/// Keys of the agent's configuration file.
pub(crate) const AGENT_KEYS: &[Key] = &[
    used("nodename", Text, ""),
    used("hostname", Text, ""),
    used("datastore_type", Text, "local"),
    used("etcd_endpoints", Text, ""),
    used("etcd_discovery_srv", Text, ""),
    used("etcd_authority", Text, ""),
    used("etcd_scheme", Text, "http"),
    used("etcd_key_file", Text, ""),
    used("etcd_cert_file", Text, ""),
    used("etcd_ca_cert_file", Text, ""),
    used("etcd_username", Text, ""),
    used("etcd_password", Text, ""),
    used("etcd_password_file", Text, ""),
    used("etcd_prefix", Text, "/margay/v1/"),
    used("etcd_connect_timeout_ms", Number, "2000"),
    used("etcd_request_timeout_ms", Number, "5000"),
    used("state_dir", Text, "/var/lib/margay"),
    used("run_dir", Text, "/run/margay"),
    used("bpffs_root", Text, "/sys/fs/bpf/margay"),
    used("max_pods", Number, "65536"),
    used("max_flows", Number, "131072"),
    used("log_level", Text, "info"),
    used("log_file_path", Text, ""),
    used("node_addresses", Texts, "[]"),
    used("metrics_address", Text, "127.0.0.1:9091"),
    used("upkeep_interval_seconds", Number, "60"),
    used("upkeep_grace_seconds", Number, "60"),
    used("fast_path", Truth, "true"),
    used("vxlan_port", Number, "4789"),
    used("vxlan_vni", Number, "4096"),
];

/// Checks every key of `object` against `keys`: an unknown one or a value of the wrong type is an
/// error. Returns the paths of those that have no effect. `prefix` is the object's path with a
/// final dot, empty for the document.
pub(crate) fn check(
    object: &Object<'_>,
    prefix: &str,
    keys: &[Key],
) -> Result<Vec<String>, ConfigError> {
    let mut unused = Vec::new();
    walk(object, prefix, keys, &mut unused)?;
    Ok(unused)
}

/// `prefix` is the object's path as the table writes it, with its final dot.
fn walk(
    object: &Object<'_>,
    prefix: &str,
    keys: &[Key],
    unused: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for (name, field) in object.fields() {
        let path = format!("{prefix}{name}");
        // A key that is itself spelled with a dot must not pass for a nested one.
        let known = |key: &&Key| key.path == path && split(key.path).1 == name;
        let key = keys.iter().find(known).ok_or_else(|| ConfigError::Unknown {
            field: shortened(field.path()),
            nearest: nearest(&path, keys),
        })?;
        check_kind(&field, key.kind)?;
        if key.effect == Effect::Unused && says_something(&field) {
            unused.push(field.path().to_owned());
        }
        match key.kind {
            Kind::Object => walk(&field.object()?, &format!("{path}."), keys, unused)?,
            Kind::Objects => {
                for item in field.list()? {
                    walk(&item.object()?, &format!("{path}[]."), keys, unused)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_kind(field: &Field<'_>, kind: Kind) -> Result<(), ConfigError> {
    match kind {
        Kind::Text => field.string().map(drop),
        Kind::Truth => field.boolean().map(drop),
        Kind::Number if field.value().is_u64() => Ok(()),
        Kind::Number => Err(field.invalid("must be a whole number, not negative")),
        Kind::Object | Kind::OpenObject => field.object().map(drop),
        Kind::OpenList => field.list().map(drop),
        Kind::CheckedLater => Ok(()),
        Kind::Texts => field.list()?.iter().try_for_each(|item| item.string().map(drop)),
        Kind::Objects => field.list()?.iter().try_for_each(|item| item.object().map(drop)),
    }
}

/// Whether the value differs from what an absent key means: Calico's own templates write many
/// keys with an empty or zero value.
fn says_something(field: &Field<'_>) -> bool {
    use serde_json::Value;
    match field.value() {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty() && !text.eq_ignore_ascii_case("false"),
        Value::Number(number) => number.as_u64() != Some(0),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    }
}

/// The known key nearest to `path`: a sibling spelled almost the same, else the same name at
/// another place.
fn nearest(path: &str, keys: &[Key]) -> Option<String> {
    let (parent, name) = split(path);
    let all = || keys.iter().chain(NETCONF_KEYS).chain(IPAM_KEYS).map(|key| key.path);
    let sibling = all()
        .filter(|known| split(known).0 == parent)
        .map(|known| (edit_distance(name, split(known).1), known))
        .filter(|(distance, _)| *distance <= 1.max(name.chars().count() / 3))
        .min_by_key(|(distance, _)| *distance);
    let elsewhere = || all().find(|known| edit_distance(name, split(known).1) == 0);
    sibling.map(|(_, known)| known).or_else(elsewhere).map(str::to_owned)
}

/// Path of the object a key is in, and the key's name. Names that the CNI specification prefixes
/// with its domain have a dot of their own.
fn split(path: &str) -> (&str, &str) {
    if path.starts_with("cni.dev/") {
        ("", path)
    } else {
        path.rsplit_once('.').unwrap_or(("", path))
    }
}

/// Levenshtein distance without regard to case; hopeless, and not computed, for long names.
fn edit_distance(one: &str, other: &str) -> usize {
    const LONGEST: usize = 64;
    let one: Vec<char> = one.to_lowercase().chars().take(LONGEST + 1).collect();
    let other: Vec<char> = other.to_lowercase().chars().collect();
    if one.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let substitution = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
