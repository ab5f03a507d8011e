//! The records that are not addresses: workload endpoints and nodes.
//!
//! They are stored as JSON that a person can read with `sqlite3`. A field that a record gains later
//! must have a default, so that records written before it still decode.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::Attachment;

/// One interface of one pod as it was made: what DEL, CHECK and GC go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which interface of which container on which network.
    pub attachment: Attachment,
    /// The node that the container runs on.
    pub node: String,
    /// The pod, if the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Name of the host's end of the veth pair.
    pub host_veth: String,
    /// MAC address of the pod's end, written `aa:bb:cc:dd:ee:ff`.
    #[serde(with = "mac")]
    pub pod_mac: [u8; 6],
    /// MAC address of the host's end, written `aa:bb:cc:dd:ee:ff`.
    #[serde(with = "mac")]
    pub host_mac: [u8; 6],
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The pod's addresses with the prefix length they carry inside the pod.
    pub ips: Vec<IpNetwork>,
    /// Path of the pod's network namespace at the time of the ADD.
    pub netns: String,
    /// Inode of that namespace, by which another one at the same path is told from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_inode: Option<u64>,
    /// The kernel's boot ID at the time of the ADD.
    pub boot_id: String,
    /// Labels of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Named or mapped ports of the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
    /// How fast it may receive and send.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// The dataplane that carries its packets: `ebpf` or `linux`.
    pub dataplane: String,
    /// How the programs of `ebpf` are attached: `clsact` or `tcx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<String>,
    /// Whether they answer for any address that the pod asks for, not for the gateway's alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answer_any_arp: bool,
    /// When the ADD wrote it, in seconds since the Unix epoch.
    pub created_at: u64,
    /// When it became ready, in microseconds on the kernel's boot clock (`CLOCK_BOOTTIME`) of the
    /// boot `boot_id`; 0 if it did not yet.
    #[serde(default)]
    pub ready_at_boot_us: u64,
    /// How far it has come.
    pub state: EndpointState,
}

/// The pod behind an attachment, in the orchestrator's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's namespace; empty where the runtime has none, as podman.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID, if the runtime passes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Its name; empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The protocol it speaks.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub port: u16,
    /// The host's port that leads to it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The host address that `host_port` is bound to, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

/// How fast a pod may receive and send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What goes to the pod, CNI's "ingress"; `None` is as fast as it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<RateLimit>,
    /// What the pod sends, CNI's "egress"; `None` is as fast as it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<RateLimit>,
}

/// A limit in the long run, and what may exceed it for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bytes per second, not 0.
    pub rate_bytes_per_s: u64,
    /// Bytes that may pass at once.
    pub burst_bytes: u32,
}

impl Bandwidth {
    /// Whether neither direction has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// How far an endpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Being made: what it names may be missing still.
    Pending,
    /// Everything it names is there.
    Ready,
}

/// A node: the boot it was last seen in, and how others reach it.
///
/// The plugin writes the boot, the node's agent the rest, each leaving the other's part alone
/// ([`Store::update_node`](crate::Store::update_node)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// The kernel's boot ID (`/proc/sys/kernel/random/boot_id`) whose allocations are current; empty
    /// before the first.
    pub boot_id: String,
    /// Its addresses on the network between the nodes, at most one of a family, each with the prefix
    /// length of its subnet. None as long as no agent has run there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNetwork>,
    /// Its end of the overlay, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayEnd>,
}

/// That the agent of a node runs. What tells is not the time, since clocks differ, but that the record
/// is written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The node.
    pub node: String,
    /// When, by the node's clock, in seconds since the Unix epoch; for people.
    pub at: u64,
}

/// A node's end of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayEnd {
    /// MAC address of its VXLAN device.
    #[serde(with = "mac")]
    pub mac: [u8; 6],
    /// What the node itself sends through the overlay comes from these; at most one of a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// MAC addresses as `aa:bb:cc:dd:ee:ff`.
mod mac {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mac: &[u8; 6], out: S) -> Result<S::Ok, S::Error> {
        let [a, b, c, d, e, f] = mac;
        out.collect_str(&format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<[u8; 6], D::Error> {
        let text = String::deserialize(input)?;
        parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a MAC address")))
    }

    fn parse(text: &str) -> Option<[u8; 6]> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next()?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            attachment: Attachment::new("net", "c1", "eth0").unwrap(),
            node: "node-a".into(),
            pod: Some(PodRef { namespace: "default".into(), name: "web".into(), uid: None }),
            host_veth: "mgy0123456789ab".into(),
            pod_mac: [0x02, 0, 0, 0xaa, 0xbb, 0xcc],
            host_mac: [0xee; 6],
            mtu: 1500,
            ips: vec!["10.244.0.5/32".parse().unwrap(), "fd00::5/128".parse().unwrap()],
            netns: "/run/netns/c1".into(),
            netns_inode: Some(4_026_532_000),
            boot_id: "boot".into(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            ports: vec![],
            bandwidth: Bandwidth {
                to_pod: None,
                from_pod: Some(RateLimit { rate_bytes_per_s: 125_000, burst_bytes: 131_072 }),
            },
            dataplane: "ebpf".into(),
            attach: Some("tcx".into()),
            answer_any_arp: true,
            created_at: 1_700_000_000,
            ready_at_boot_us: 1_000,
            state: EndpointState::Ready,
        }
    }

    #[test]
    fn an_endpoint_reads_back_and_shows_its_mac_as_people_write_it() {
        let json = serde_json::to_string(&endpoint()).unwrap();

        assert!(json.contains(r#""pod_mac":"02:00:00:aa:bb:cc""#), "{json}");
        assert_eq!(serde_json::from_str::<Endpoint>(&json).unwrap(), endpoint());
    }

    #[test]
    fn a_node_of_before_there_were_agents_decodes_and_says_no_more_than_it_did() {
        let json = r#"{"name":"a","boot_id":"b"}"#;

        let node: Node = serde_json::from_str(json).unwrap();

        assert_eq!(node, Node { name: "a".into(), boot_id: "b".into(), ..Node::default() });
        assert_eq!(serde_json::to_string(&node).unwrap(), json);
    }

    #[test]
    fn a_broken_mac_is_an_error() {
        let good = serde_json::to_string(&endpoint()).unwrap();
        for bad in ["02:00:00:aa:bb", "02:00:00:aa:bb:cc:dd", "2:0:0:a:b:c", "+2:00:00:aa:bb:cc"] {
            let json = good.replace("02:00:00:aa:bb:cc", bad);
            assert!(serde_json::from_str::<Endpoint>(&json).is_err(), "{bad}");
        }
    }
}
