//! The host's network: links, addresses, routes, filters, sysctls, firewall.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};

use margay::naming;
use margay::result::mac_text;
use margay::{nat, sysctl};
use margay_datapath::{Datapath, Program};
use serde_json::json;

use super::archive::Archive;
use crate::doctor::Picture;
use crate::firewall;

/// Below `net/`, of the whole host.
const SYSCTLS: [&str; 7] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "core/bpf_jit_enable",
    "core/bpf_jit_harden",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_tcp_be_liberal",
];
/// Of each interface.
const OF_INTERFACE: [(&str, &str); 7] = [
    ("ipv4", "forwarding"),
    ("ipv4", "rp_filter"),
    ("ipv4", "proxy_arp"),
    ("ipv4", "arp_ignore"),
    ("ipv6", "disable_ipv6"),
    ("ipv6", "accept_ra"),
    ("ipv6", "proxy_ndp"),
];

pub(super) async fn add(archive: &mut Archive, picture: &Picture<'_>) -> io::Result<()> {
    let link = |link: &margay::netlink::LinkInfo| {
        json!({
            "index": link.index, "name": link.name, "alias": link.alias, "mtu": link.mtu,
            "up": link.up, "kind": link.kind, "mac": mac_text(link.mac),
        })
    };
    archive.json("links.json", &picture.links.iter().map(link).collect::<Vec<_>>())?;
    let route = |route: &margay::netlink::RouteInfo| {
        json!({
            "destination": route.destination, "prefix_length": route.prefix_length,
            "gateway": route.gateway, "ifindex": route.ifindex,
            "protocol": route.protocol, "table": route.table,
        })
    };
    archive.json("routes.json", &picture.routes.iter().map(route).collect::<Vec<_>>())?;
    let (mut addresses, mut filters) = (Vec::new(), Vec::new());
    let root = &picture.paths().bpffs_root;
    for link in &picture.links {
        let name = &link.name;
        for info in picture.netlink.addresses(link.index).await.unwrap_or_default() {
            addresses.push(json!({"interface": name, "address": info.address}));
        }
        for hook in Program::OF_POD {
            let found = Datapath::filters(root, picture.netlink.handle(), link.index, hook).await;
            for filter in found.unwrap_or_default() {
                filters.push(json!({
                    "interface": name,
                    "hook": if hook == Program::FromPod { "ingress" } else { "egress" },
                    "kind": filter.kind, "priority": filter.priority,
                    "program": filter.program.map(|id| id.0),
                    "is_in_margays_place": filter.is_in_margays_place,
                }));
            }
        }
    }
    archive.json("addresses.json", &addresses)?;
    archive.json("filters.json", &filters)?;
    archive.json("sysctls.json", &sysctls(picture))?;
    add_firewall(archive)
}

/// What decides over pods' packets; `null` where the kernel has no such switch.
fn sysctls(picture: &Picture<'_>) -> BTreeMap<String, Option<String>> {
    let mut keys: Vec<String> = SYSCTLS.iter().map(|key| (*key).to_owned()).collect();
    let of_hosts = |name: &str| {
        picture.routes.iter().any(|route| {
            route.prefix_length == 0
                && picture.link(name).is_some_and(|it| Some(it.index) == route.ifindex)
        })
    };
    let names = picture.links.iter().map(|link| link.name.as_str());
    let of_concern = names.filter(|name| {
        naming::is_of_a_pod(name) || naming::is_overlay_device(name) || of_hosts(name)
    });
    for name in ["all", "default"].into_iter().chain(of_concern) {
        keys.extend(OF_INTERFACE.iter().map(|(family, key)| format!("{family}/conf/{name}/{key}")));
    }
    let value = |key: String| (format!("net/{key}"), sysctl::get(&key).ok());
    keys.into_iter().map(value).collect()
}

/// With rules of others, as far as they are in the way of forwarded packets.
fn add_firewall(archive: &mut Archive) -> io::Result<()> {
    archive.text("firewall/margay.txt", &nft())?;
    let mut text = String::new();
    for chain in firewall::chains() {
        text += &match chain {
            Ok(chain) => format!("# {}\n{}\n", chain.name, chain.text),
            Err(error) => format!("# {error}\n"),
        };
    }
    archive.text("firewall/forward.txt", &text)
}

/// As nftables prints it.
fn nft() -> String {
    let list = ["list", "table", "inet", nat::TABLE];
    match Command::new("nft").args(list).stdin(Stdio::null()).output() {
        Ok(output) => {
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }
        Err(error) => format!("nft: {error}\n"),
    }
}
