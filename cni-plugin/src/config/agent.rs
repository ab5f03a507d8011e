//! The configuration of margay-agent: the keys of the network configuration that concern a node, with
//! the same names and meanings, and a few of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::field::{Field, Object};
use super::{ConfigError, Datastore, Paths, keys, log, map_sizes, nodename, paths};
use crate::log::LogConf;

/// Least prefix length of a subnet that a node can be on: a shorter one is a default route's.
const LEAST_PREFIX: u8 = 1;

/// The port of Calico's agent.
const DEFAULT_METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
const DEFAULT_VXLAN_PORT: u16 = 4789;
const DEFAULT_VXLAN_VNI: u32 = 4096;

/// A valid configuration of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConf {
    /// Name of this node in the datastore.
    pub nodename: String,
    /// Where state lives.
    pub paths: Paths,
    /// Where records are.
    pub datastore: Datastore,
    /// Entries of each pod map, where the agent makes the maps.
    pub max_pods: u32,
    /// Entries of each flow map.
    pub max_flows: u32,
    /// Where logs go.
    pub log: LogConf,
    /// Addresses of this node, with the prefix lengths of their subnets. Empty: those of the
    /// interface of the default route.
    pub node_addresses: Vec<IpNetwork>,
    /// Where metrics and health are served; `None` for nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// How often the node is looked after.
    pub upkeep_interval: Duration,
    /// How long something must look as if it were of no use before upkeep takes it away.
    pub upkeep_grace: Duration,
    /// Whether programs carry packets between nodes past the stack.
    pub fast_path: bool,
    /// UDP port of the overlay, the same on every node.
    pub vxlan_port: u16,
    /// Network identifier of the overlay.
    pub vxlan_vni: u32,
}

impl AgentConf {
    /// Validates the agent's configuration file.
    ///
    /// # Errors
    /// When a key is unknown, or a value cannot be used.
    pub fn from_map(document: &Map<String, Value>) -> Result<Self, ConfigError> {
        let object = Object::root(document);
        let mut unused = keys::check(&object, "", keys::AGENT_KEYS)?;
        let port = object.integer("vxlan_port", 1..=65_535)?;
        let vni = object.integer("vxlan_vni", 1..=16_777_215)?;
        let (max_pods, max_flows) = map_sizes(&object)?;
        Ok(Self {
            nodename: nodename(&object)?,
            paths: paths(&object, None)?,
            datastore: Datastore::from_object(&object, &mut unused)?.for_a_daemon(),
            max_pods,
            max_flows,
            log: log(&object)?,
            node_addresses: node_addresses(&object)?,
            metrics_address: metrics_address(&object)?,
            upkeep_interval: seconds(&object, "upkeep_interval_seconds", 1)?,
            upkeep_grace: seconds(&object, "upkeep_grace_seconds", 0)?,
            fast_path: object.boolean("fast_path")?.unwrap_or(true),
            vxlan_port: port.and_then(|port| port.try_into().ok()).unwrap_or(DEFAULT_VXLAN_PORT),
            vxlan_vni: vni.unwrap_or(DEFAULT_VXLAN_VNI),
        })
    }
}

/// A minute, unless something else is configured.
fn seconds(object: &Object<'_>, key: &str, least: u32) -> Result<Duration, ConfigError> {
    let seconds = object.integer(key, least..=86_400)?;
    Ok(Duration::from_secs(seconds.unwrap_or(60).into()))
}

fn metrics_address(object: &Object<'_>) -> Result<Option<SocketAddr>, ConfigError> {
    match (object.string("metrics_address")?, object.get("metrics_address")) {
        (Some("off"), _) => Ok(None),
        (Some(_), Some(field)) => {
            field.parse("must be an address and a port such as 127.0.0.1:9091, or off").map(Some)
        }
        _ => Ok(Some(DEFAULT_METRICS_ADDRESS)),
    }
}

/// At most one address of a family: the others of it would never be used.
fn node_addresses(object: &Object<'_>) -> Result<Vec<IpNetwork>, ConfigError> {
    let mut addresses: Vec<IpNetwork> = Vec::new();
    for item in object.list("node_addresses")? {
        let address = node_address(&item)?;
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(item.invalid("is a second address of its family"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn node_address(field: &Field<'_>) -> Result<IpNetwork, ConfigError> {
    const WANTED: &str = "must be an address with the prefix length of its subnet, \
                          such as 192.168.1.7/24";
    if !field.string()?.contains('/') {
        return Err(field.invalid(WANTED));
    }
    let address: IpNetwork = field.parse(WANTED)?;
    let ip = address.ip();
    let is_of_a_node = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
    match is_of_a_node && address.prefix() >= LEAST_PREFIX {
        true => Ok(address),
        false => Err(field.invalid(WANTED)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conf(document: Value) -> Result<AgentConf, ConfigError> {
        AgentConf::from_map(document.as_object().unwrap())
    }

    #[test]
    fn nothing_has_to_be_said() {
        let conf = conf(json!({})).unwrap();

        assert_eq!(conf.paths.state_dir, std::path::Path::new("/var/lib/margay"));
        assert_eq!((conf.vxlan_port, conf.vxlan_vni), (4789, 4096));
        assert!(conf.fast_path);
        assert!(!conf.nodename.is_empty() && conf.node_addresses.is_empty());
    }

    #[test]
    fn a_node_has_one_address_of_a_family_and_they_are_addresses_of_a_host() {
        let of = |addresses: Value| conf(json!({ "node_addresses": addresses }));

        let addresses = of(json!(["10.0.0.1/24", "fd00::1/64"])).unwrap().node_addresses;
        assert_eq!(addresses.len(), 2);
        for bad in [
            json!(["10.0.0.1"]),
            json!(["10.0.0.1/24", "10.0.1.1/24"]),
            json!(["127.0.0.1/8"]),
            json!(["0.0.0.0/0"]),
            json!(["ff02::1/64"]),
        ] {
            assert!(matches!(of(bad.clone()), Err(ConfigError::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn metrics_are_local_unless_said_otherwise() {
        let of = |address: &str| conf(json!({ "metrics_address": address }));

        assert_eq!(of("").unwrap().metrics_address, "127.0.0.1:9091".parse().ok());
        assert_eq!(of("[::]:9100").unwrap().metrics_address, "[::]:9100".parse().ok());
        assert_eq!(of("off").unwrap().metrics_address, None);
        assert!(of("localhost:9091").is_err(), "no name service is asked");
    }

    #[test]
    fn a_key_that_is_not_the_agents_is_refused_by_name() {
        let error = conf(json!({ "vxlan_prot": 1 })).unwrap_err().to_string();

        assert_eq!(error, "vxlan_prot is not a key margay knows, did you mean vxlan_port?");
        assert!(conf(json!({ "ipam": {} })).is_err());
    }
}
