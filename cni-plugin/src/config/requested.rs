//! What one pod asks for: addresses, a MAC address, labels, bandwidth, host ports.
//!
//! Of the three places that can name addresses, the first that does is taken, whole:
//! `runtimeConfig.ips`, `args.cni.ips`, `IP` in `CNI_ARGS`. The MAC address likewise.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use margay_datastore::{Bandwidth, EndpointPort, Protocol};
use serde_json::{Map, Value};

use super::field::{Field, Object};
use super::{ConfigError, bandwidth};
use crate::args::CniArgs;

/// A MAC address.
pub type Mac = [u8; 6];

/// What one pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requested {
    /// Addresses, at most one of each family; empty if the pod takes what it gets.
    pub ips: Vec<IpAddr>,
    /// The pod's MAC address.
    pub mac: Option<Mac>,
    /// `args.cni.labels`.
    pub labels: BTreeMap<String, String>,
    /// `runtimeConfig.bandwidth`.
    pub bandwidth: Bandwidth,
    /// `runtimeConfig.portMappings`: host ports that another plugin of the chain makes.
    pub ports: Vec<EndpointPort>,
}

impl Requested {
    /// Reads `runtimeConfig` and `args.cni` of a network configuration. Only an ADD does: a pod that
    /// asked for nonsense must not be in the way of its own DEL.
    pub fn from_map(document: &Map<String, Value>) -> Result<Self, ConfigError> {
        let netconf = Object::root(document);
        let runtime = netconf.object("runtimeConfig")?;
        let args = match netconf.object("args")? {
            Some(args) => args.object("cni")?,
            None => None,
        };
        let mut requested = Self::default();
        for place in [&runtime, &args].into_iter().flatten() {
            if requested.ips.is_empty() {
                requested.ips = ips(place)?;
            }
            if requested.mac.is_none() {
                requested.mac = place.get("mac").map(|field| mac(&field)).transpose()?.flatten();
            }
        }
        if let Some(runtime) = &runtime {
            requested.ports = ports(runtime)?;
        }
        if let Some(args) = &args {
            requested.labels = labels(args)?;
        }
        if let Some(runtime) = &runtime {
            requested.bandwidth = bandwidth::bandwidth(runtime)?;
        }
        Ok(requested)
    }

    /// Verifies that what is asked for can be had with this MTU, in bytes.
    pub fn must_fit(&self, mtu: u32) -> Result<(), ConfigError> {
        bandwidth::must_hold_packets(&self.bandwidth, mtu)
    }

    /// Fills in what `CNI_ARGS` asks for and the network configuration does not.
    #[must_use]
    pub fn or_args(mut self, args: &CniArgs) -> Self {
        if self.ips.is_empty() {
            self.ips = args.ips.clone();
        }
        self.mac = self.mac.or(args.mac);
        self
    }
}

fn ips(place: &Object<'_>) -> Result<Vec<IpAddr>, ConfigError> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for item in place.list("ips")? {
        let ip = parse_ip(item.string()?).ok_or_else(|| item.invalid(WANTED_IP))?;
        if ips.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(item.invalid("is a second address of its family"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

const WANTED_IP: &str =
    "must be a unicast address such as 10.244.0.5 or fd00::5, a prefix length is allowed";

/// An address a pod can have, with or without a prefix length.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip = match text.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) => text.parse::<IpNetwork>().ok()?.ip(),
    };
    let unusable = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
    (!unusable && ip.to_canonical() == ip).then_some(ip)
}

/// A unicast MAC address that is not all zero, in colon or hyphen notation.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let part = parts.next().filter(hex)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let unicast = mac[0] & 1 == 0 && mac != Mac::default();
    (parts.next().is_none() && unicast).then_some(mac)
}

fn mac(field: &Field<'_>) -> Result<Option<Mac>, ConfigError> {
    match field.string()? {
        "" => Ok(None),
        text => parse_mac(text).map(Some).ok_or_else(|| {
            field.invalid("must be a unicast MAC address such as 02:00:00:00:00:05")
        }),
    }
}

fn labels(args: &Object<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    args.list("labels")?
        .iter()
        .map(|item| {
            let label = item.object()?;
            let key =
                label.string("key")?.ok_or_else(|| label.missing("key", "a label has one"))?;
            Ok((key.to_owned(), label.string("value")?.unwrap_or_default().to_owned()))
        })
        .collect()
}

fn ports(runtime: &Object<'_>) -> Result<Vec<EndpointPort>, ConfigError> {
    runtime.list("portMappings")?.iter().map(port).collect()
}

/// One mapping, as libcni's conventions have it: port 0 and an empty protocol mean none named.
fn port(item: &Field<'_>) -> Result<EndpointPort, ConfigError> {
    const PORTS: std::ops::RangeInclusive<u32> = 0..=u16::MAX as u32;
    let mapping = item.object()?;
    let number = |key: &str| -> Result<Option<u16>, ConfigError> {
        let Some(field) = mapping.get_in_any_case(key) else { return Ok(None) };
        Ok(u16::try_from(field.integer(PORTS)?).ok().filter(|number| *number != 0))
    };
    let container_port = number("containerPort")?
        .ok_or_else(|| mapping.missing("containerPort", "a mapping leads to one"))?;
    let protocol = match mapping.get_in_any_case("protocol") {
        None => Protocol::Tcp,
        Some(field) => match field.string()?.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(field.invalid("must be tcp, udp or sctp")),
        },
    };
    let host_ip = match mapping.get_in_any_case("hostIP") {
        Some(field) if !field.string()?.is_empty() => {
            Some(field.parse::<IpAddr>("must be an address such as 192.0.2.1")?)
        }
        _ => None,
    };
    Ok(EndpointPort {
        name: String::new(),
        protocol,
        port: container_port,
        host_port: number("hostPort")?,
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
    })
}
