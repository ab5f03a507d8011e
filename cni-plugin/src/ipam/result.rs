//! What an IPAM plugin answers to an ADD, in any layout that a version of the specification has.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rscni_types::types::Dns;
use serde_json::{Map, Value};

use crate::config::{ConfigError, Object};

/// The addresses of an attachment and what comes with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpamResult {
    /// At least one.
    pub ips: Vec<AssignedIp>,
    /// Routes that the IPAM wants in the pod.
    pub routes: Vec<Route>,
    /// Name resolution, if the IPAM knows.
    pub dns: Option<Dns>,
}

/// An address with the network it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedIp {
    /// Address and prefix length as the IPAM says; margay puts the address alone, as `/32` or
    /// `/128`, on the pod's interface.
    pub network: IpNetwork,
    /// The IPAM's gateway, if it names one.
    pub gateway: Option<IpAddr>,
}

/// A route that an IPAM wants in the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop; without one, the gateway of the pod.
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Priority (metric).
    pub priority: Option<u32>,
}

impl IpamResult {
    /// The addresses alone.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ips.iter().map(|ip| ip.network.ip())
    }

    /// The result as margay's own pods get it: each address a network of its own, without the
    /// gateway that only other plugins need.
    pub(crate) fn for_pods(mut self) -> Self {
        for ip in &mut self.ips {
            *ip = AssignedIp { network: IpNetwork::from(ip.network.ip()), gateway: None };
        }
        self
    }

    /// Reads a result document: `ips` (0.3.0 and later) or `ip4` and `ip6` (before).
    pub fn from_map(document: &Map<String, Value>) -> Result<Self, ConfigError> {
        let object = Object::root(document);
        let mut result = Self { dns: crate::config::dns(&object)?, ..Self::default() };
        for item in object.list("ips")? {
            let ip = item.object()?;
            result.ips.push(assigned(&ip, "address")?);
        }
        result.routes = routes(&object)?;
        for key in ["ip4", "ip6"] {
            if let Some(ip) = object.object(key)? {
                result.ips.push(assigned(&ip, "ip")?);
                result.routes.extend(routes(&ip)?);
            }
        }
        if result.ips.is_empty() {
            return Err(object.missing("ips", "an IPAM plugin gives at least one address"));
        }
        Ok(result)
    }
}

fn assigned(object: &Object<'_>, key: &str) -> Result<AssignedIp, ConfigError> {
    let field = object.get(key).ok_or_else(|| object.missing(key, "it is the point of it"))?;
    let network = field.parse("must be an address with a prefix length")?;
    let gateway = optional_ip(object, "gateway")?;
    Ok(AssignedIp { network, gateway })
}

fn routes(object: &Object<'_>) -> Result<Vec<Route>, ConfigError> {
    let route = |item: &crate::config::Field<'_>| {
        let route = item.object()?;
        let dst = route.get("dst").ok_or_else(|| route.missing("dst", "a route has one"))?;
        Ok(Route {
            dst: dst.parse("must be a prefix")?,
            gw: optional_ip(&route, "gw")?,
            mtu: route.integer("mtu", 0..=u32::MAX)?.filter(|mtu| *mtu > 0),
            priority: route.integer("priority", 0..=u32::MAX)?.filter(|number| *number > 0),
        })
    };
    object.list("routes")?.iter().map(route).collect()
}

/// Go writes an absent address as an empty string at times.
fn optional_ip(object: &Object<'_>, key: &str) -> Result<Option<IpAddr>, ConfigError> {
    match (object.string(key)?, object.get(key)) {
        (Some(_), Some(field)) => field.parse("must be an address").map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(document: &Value) -> Result<IpamResult, ConfigError> {
        IpamResult::from_map(document.as_object().unwrap())
    }

    #[test]
    fn every_layout_gives_the_same_result() {
        let of_1_0 = json!({
            "cniVersion": "1.0.0",
            "ips": [
                { "address": "10.1.0.5/24", "gateway": "10.1.0.1" },
                { "address": "fd00::5/64", "interface": 0 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1" }],
            "dns": { "nameservers": ["10.1.0.1"] },
        });
        let of_0_4 = json!({
            "cniVersion": "0.4.0",
            "ips": [
                { "version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1" },
                { "version": "6", "address": "fd00::5/64" },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1" }],
            "dns": { "nameservers": ["10.1.0.1"] },
        });
        let of_0_2 = json!({
            "cniVersion": "0.2.0",
            "ip4": {
                "ip": "10.1.0.5/24", "gateway": "10.1.0.1",
                "routes": [{ "dst": "0.0.0.0/0", "gw": "10.1.0.1" }],
            },
            "ip6": { "ip": "fd00::5/64" },
            "dns": { "nameservers": ["10.1.0.1"] },
        });

        let result = read(&of_1_0).unwrap();

        assert_eq!(result.ips[0].network.to_string(), "10.1.0.5/24");
        assert_eq!(result.ips[0].gateway, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(result.routes.len(), 1);
        assert_eq!(read(&of_0_4).unwrap(), result);
        assert_eq!(read(&of_0_2).unwrap(), result);
    }

    #[test]
    fn what_go_writes_for_absent_values_is_absent() {
        let document = json!({
            "ips": [{ "address": "10.1.0.5/24", "gateway": "" }], "routes": null, "dns": {},
        });

        let result = read(&document).unwrap();

        assert_eq!((result.ips[0].gateway, result.routes.len(), result.dns), (None, 0, None));
    }

    #[test]
    fn a_result_that_is_none_is_refused_with_the_field() {
        for (document, message) in [
            (json!({}), "ips is missing"),
            (json!({ "ips": [{}] }), "ips[0].address is missing"),
            (json!({ "ips": [{ "address": "x" }] }), r#"ips[0].address = "x""#),
            (json!({ "ips": "x" }), r#"ips = "x": must be a list"#),
            (
                json!({ "ips": [{ "address": "10.0.0.1/8" }], "routes": [{ "dst": 1 }] }),
                "routes[0].dst",
            ),
        ] {
            let error = read(&document).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_pod_gets_the_address_alone() {
        let document = json!({ "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1" }] });

        let ips = read(&document).unwrap().for_pods().ips;

        assert_eq!((ips[0].network.to_string(), ips[0].gateway), ("10.1.0.5/32".into(), None));
    }
}
