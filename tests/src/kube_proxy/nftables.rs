//! The nftables mode: a table of each family, where verdict maps lead from an address or a port to a
//! Service's chain.

use std::fmt::Write as _;

use serde_json::Value;

use super::{AFFINITY_SECONDS, Family, Service};
use crate::node::Node;

const TABLE: &str = "kube-proxy";
const INVALID: &str = "ct_state_invalid_dropped_pkts";

/// The input of `nft -f`.
pub(super) fn rules(family: Family, services: &[Service]) -> String {
    let mut script = Script { text: String::new(), family };
    script.add_base();
    for service in services {
        script.add_chains(service);
    }
    for service in services {
        script.add_service(service);
        for backend in 0..service.backends.len() {
            script.add_endpoint(service, backend);
        }
    }
    script.text
}

/// Reads the counter of the rule against them back.
pub(super) fn invalid_packets(node: &Node, family: &str) -> u64 {
    let listing = node.run(&["nft", "--json", "list", "counter", family, TABLE, INVALID]);
    let listing: Value = serde_json::from_str(&listing).expect("JSON");
    let objects = listing["nftables"].as_array().expect("objects").iter();
    objects.filter_map(|object| object["counter"]["packets"].as_u64()).next().expect("counter")
}

struct Script {
    text: String,
    family: Family,
}

impl Script {
    fn add(&mut self, kind: &str, what: &str) {
        let family = self.family.name;
        writeln!(self.text, "add {kind} {family} {TABLE} {what}").expect("a string takes all");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        self.add("rule", &format!("{chain} {rule}"));
    }

    /// What is there without a single Service.
    fn add_base(&mut self) {
        let Family { name, node, .. } = self.family;
        let address = if name == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        writeln!(self.text, "add table {name} {TABLE} {{ comment \"rules for kube-proxy\" ; }}")
            .expect("a string takes all");
        self.add("counter", INVALID);
        self.add("set", &format!("cluster-ips {{ type {address} ; }}"));
        self.add("set", &format!("nodeport-ips {{ type {address} ; }}"));
        let verdicts = format!("{{ type {address} . inet_proto . inet_service : verdict ; }}");
        for map in ["firewall-ips", "no-endpoint-services", "service-ips"] {
            self.add("map", &format!("{map} {verdicts}"));
        }
        for map in ["no-endpoint-nodeports", "service-nodeports"] {
            self.add("map", &format!("{map} {{ type inet_proto . inet_service : verdict ; }}"));
        }
        for chain in PLAIN_CHAINS {
            self.add("chain", chain);
        }
        for (chain, hook) in HOOKED_CHAINS {
            self.add("chain", &format!("{chain} {{ type {hook} ; }}"));
        }
        for (chain, rule) in BASE_RULES {
            self.rule(chain, &rule.replace("IP", name));
        }
        self.add("element", &format!("nodeport-ips {{ {node} }}"));
    }

    fn add_chains(&mut self, service: &Service) {
        let name = chain_name(service);
        self.add("chain", &format!("service-{name}"));
        if service.node_port.is_some() {
            self.add("chain", &format!("external-{name}"));
        }
        for backend in 0..service.backends.len() {
            self.add("chain", &format!("endpoint-{}", endpoint(service, backend)));
            if service.has_affinity {
                let address = if self.family.name == "ip" { "ipv4_addr" } else { "ipv6_addr" };
                let set = format!(
                    "affinity-{} {{ type {address} ; flags dynamic,timeout ; timeout \
                     {AFFINITY_SECONDS}s ; }}",
                    endpoint(service, backend)
                );
                self.add("set", &set);
            }
        }
    }

    fn add_service(&mut self, service: &Service) {
        let Family { name: ip, pods, .. } = self.family;
        let (name, protocol) = (chain_name(service), service.protocol.name());
        let (address, port) = (service.cluster.ip(), service.cluster.port());
        let chain = format!("service-{name}");
        self.rule(
            &chain,
            &format!("{ip} daddr {address} {ip} saddr != {pods} jump mark-for-masquerade"),
        );
        let count = service.backends.len();
        if service.has_affinity {
            for backend in 0..count {
                let endpoint = endpoint(service, backend);
                let rule = format!("{ip} saddr @affinity-{endpoint} goto endpoint-{endpoint}");
                self.rule(&chain, &rule);
            }
        }
        let choices: Vec<String> = (0..count)
            .map(|backend| format!("{backend} : goto endpoint-{}", endpoint(service, backend)))
            .collect();
        let choices = choices.join(" , ");
        self.rule(&chain, &format!("numgen random mod {count} vmap {{ {choices} }}"));
        self.add("element", &format!("cluster-ips {{ {address} }}"));
        self.add(
            "element",
            &format!("service-ips {{ {address} . {protocol} . {port} : goto {chain} }}"),
        );
        if let Some(node_port) = service.node_port {
            let external = format!("external-{name}");
            self.rule(&external, "jump mark-for-masquerade");
            self.rule(&external, &format!("goto {chain}"));
            let element =
                format!("service-nodeports {{ {protocol} . {node_port} : goto {external} }}");
            self.add("element", &element);
        }
    }

    fn add_endpoint(&mut self, service: &Service, backend: usize) {
        let ip = self.family.name;
        let (endpoint, address) = (endpoint(service, backend), service.backends[backend]);
        let chain = format!("endpoint-{endpoint}");
        self.rule(&chain, &format!("{ip} saddr {} jump mark-for-masquerade", address.ip()));
        if service.has_affinity {
            self.rule(&chain, &format!("update @affinity-{endpoint} {{ {ip} saddr }}"));
        }
        let protocol = service.protocol.name();
        self.rule(&chain, &format!("meta l4proto {protocol} dnat to {address}"));
    }
}

const PLAIN_CHAINS: [&str; 8] = [
    "cluster-ips-check",
    "firewall-check",
    "mark-for-masquerade",
    "masquerading",
    "nodeport-endpoints-check",
    "reject-chain",
    "services",
    "service-endpoints-check",
];

const HOOKED_CHAINS: [(&str, &str); 8] = [
    ("filter-prerouting-pre-dnat", "filter hook prerouting priority -110"),
    ("filter-output-pre-dnat", "filter hook output priority -110"),
    ("filter-forward", "filter hook forward priority 0"),
    ("filter-input", "filter hook input priority 0"),
    ("filter-output", "filter hook output priority 0"),
    ("nat-output", "nat hook output priority -100"),
    ("nat-postrouting", "nat hook postrouting priority 100"),
    ("nat-prerouting", "nat hook prerouting priority -100"),
];

/// `IP` stands for the family's word.
const BASE_RULES: [(&str, &str); 21] = [
    ("cluster-ips-check", "IP daddr @cluster-ips reject"),
    ("filter-prerouting-pre-dnat", "ct state new jump firewall-check"),
    ("filter-output-pre-dnat", "ct state new jump firewall-check"),
    ("filter-forward", "ct state invalid counter name ct_state_invalid_dropped_pkts drop"),
    ("filter-forward", "ct state new jump service-endpoints-check"),
    ("filter-forward", "ct state new jump cluster-ips-check"),
    ("filter-input", "ct state new jump nodeport-endpoints-check"),
    ("filter-input", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump service-endpoints-check"),
    ("filter-output", "ct state new jump cluster-ips-check"),
    ("firewall-check", "IP daddr . meta l4proto . th dport vmap @firewall-ips"),
    ("mark-for-masquerade", "mark set mark or 0x4000"),
    ("masquerading", "mark and 0x4000 == 0 return"),
    ("masquerading", "mark set mark xor 0x4000"),
    ("masquerading", "masquerade fully-random"),
    ("nat-output", "jump services"),
    ("nat-postrouting", "jump masquerading"),
    ("nat-prerouting", "jump services"),
    ("service-endpoints-check", "IP daddr . meta l4proto . th dport vmap @no-endpoint-services"),
    ("services", "IP daddr . meta l4proto . th dport vmap @service-ips"),
    ("services", "IP daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports"),
];

/// Chains are named by eight characters of a hash and the names of Service and port.
fn chain_name(service: &Service) -> String {
    format!("{:0>8}-{}/{}/p", service.number, service.name(), service.protocol.name())
}

fn endpoint(service: &Service, backend: usize) -> String {
    let address = service.backends[backend];
    let ip = address.ip().to_string().replace(':', ".");
    format!("{}__{ip}/{}", chain_name(service), address.port())
}
