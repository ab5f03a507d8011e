//! The iptables mode: a chain for each Service and for each of its endpoints.

use std::fmt::Write as _;

use super::{AFFINITY_SECONDS, Family, Service};
use crate::node::Node;

const INVALID: &str = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";

/// The input of `iptables-restore`.
pub(super) fn rules(family: Family, services: &[Service]) -> String {
    let mut text = FILTER.to_owned();
    text += "*nat\n";
    for chain in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
        line(&mut text, format_args!(":{chain} ACCEPT [0:0]"));
    }
    for chain in ["SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ"] {
        line(&mut text, format_args!(":KUBE-{chain} - [0:0]"));
    }
    for service in services {
        line(&mut text, format_args!(":{} - [0:0]", svc(service)));
        if service.node_port.is_some() {
            line(&mut text, format_args!(":{} - [0:0]", ext(service)));
        }
        for backend in 0..service.backends.len() {
            line(&mut text, format_args!(":{} - [0:0]", sep(service, backend)));
        }
    }
    text += NAT;
    for service in services {
        add_service(&mut text, family, service);
    }
    text += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be \
             the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n";
    text
}

/// Reads the counter of the rule against them back.
pub(super) fn invalid_packets(node: &Node, ipv4: bool) -> u64 {
    let save = if ipv4 { "iptables-save" } else { "ip6tables-save" };
    let saved = node.run(&[save, "-c", "-t", "filter"]);
    let rule = saved.lines().find(|line| line.ends_with(INVALID)).expect("the rule");
    let packets = rule.trim_start_matches('[').split(':').next().expect("a counter");
    packets.parse().expect("a number")
}

const FILTER: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

fn add_service(text: &mut String, family: Family, service: &Service) {
    let (name, svc, protocol) = (service.name(), svc(service), service.protocol.name());
    let to_cluster = format!(
        "-m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {} --dport {}",
        family.prefix(service.cluster.ip()),
        service.cluster.port(),
    );
    line(text, format_args!("-A KUBE-SERVICES {to_cluster} -j {svc}"));
    line(text, format_args!("-A {svc} {to_cluster} ! -s {} -j KUBE-MARK-MASQ", family.pods));
    if let Some(port) = service.node_port {
        let ext = ext(service);
        line(
            text,
            format_args!(
                "-A KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} \
                 --dport {port} -j {ext}"
            ),
        );
        line(
            text,
            format_args!(
                "-A {ext} -m comment --comment \"masquerade traffic for {name} external \
                 destinations\" -j KUBE-MARK-MASQ"
            ),
        );
        line(text, format_args!("-A {ext} -j {svc}"));
    }
    add_endpoints(text, family, service);
}

fn add_endpoints(text: &mut String, family: Family, service: &Service) {
    let (name, svc, protocol) = (service.name(), svc(service), service.protocol.name());
    if service.has_affinity {
        for (index, backend) in service.backends.iter().enumerate() {
            let sep = sep(service, index);
            line(
                text,
                format_args!(
                    "-A {svc} -m comment --comment \"{name} -> {backend}\" -m recent --name {sep} \
                     --rcheck --seconds {AFFINITY_SECONDS} --reap -j {sep}"
                ),
            );
        }
    }
    for (index, backend) in service.backends.iter().enumerate() {
        let sep = sep(service, index);
        // Each takes its share of what the ones before have left, and the last one the rest.
        let share = match service.backends.len() - index {
            1 => String::new(),
            rest => {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / rest as f64)
            }
        };
        line(
            text,
            format_args!("-A {svc} -m comment --comment \"{name} -> {backend}\"{share} -j {sep}"),
        );
        let own = family.prefix(backend.ip());
        line(text, format_args!("-A {sep} -m comment --comment {name} -s {own} -j KUBE-MARK-MASQ"));
        let remember = match service.has_affinity {
            true => format!(" -m recent --name {sep} --set"),
            false => String::new(),
        };
        line(
            text,
            format_args!(
                "-A {sep} -m comment --comment {name}{remember} -m {protocol} -p {protocol} -j DNAT \
                 --to-destination {backend}"
            ),
        );
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

/// Chains are named by sixteen characters of a hash; here the number does.
fn svc(service: &Service) -> String {
    format!("KUBE-SVC-{:0>16}", service.number)
}

fn ext(service: &Service) -> String {
    format!("KUBE-EXT-{:0>16}", service.number)
}

fn sep(service: &Service, backend: usize) -> String {
    format!("KUBE-SEP-{:0>12}{backend:0>4}", service.number)
}
