//! Ten thousand connections through kube-proxy's rules for five hundred Services, by TCP and UDP, and
//! beside them some that go to the pods directly: none is lost, and none is while the flow table has
//! no room for them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use margay_abi::Counter;
use margay_tests::echo::{Echo, LONGEST, Question};
use margay_tests::kube_proxy::{KubeProxy, Mode, Service};
use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::{Node, Pod};
use serde_json::json;

const SERVICES: usize = 500;
const CONNECTIONS: usize = 10_000;
const CLIENTS: usize = 4;
const BACKENDS: usize = 4;
/// Questions that a client has open at once.
const OPEN: usize = 40;
/// One in so many goes to a pod and not to a Service.
const DIRECT: usize = 11;
/// First port of what goes by TCP to a pod, below those that the kernel chooses for the rest. Conntrack
/// does not see these connections, and cannot keep another through a Service off the same ports.
const DIRECT_PORTS: usize = 20_000;
/// Entries of a flow table that a client's open questions overflow.
const FEW_FLOWS: u32 = 16;

#[test]
fn iptables_over_ipv4_loses_no_connection() {
    connect(Mode::Iptables, true, None);
}

#[test]
fn iptables_over_ipv6_loses_no_connection() {
    connect(Mode::Iptables, false, None);
}

#[test]
fn nftables_over_ipv4_loses_no_connection() {
    connect(Mode::Nftables, true, None);
}

#[test]
fn nftables_over_ipv6_loses_no_connection() {
    connect(Mode::Nftables, false, None);
}

#[test]
fn iptables_over_ipv4_loses_no_connection_while_flows_are_forgotten_all_the_time() {
    connect(Mode::Iptables, true, Some(FEW_FLOWS));
}

#[test]
fn iptables_over_ipv6_loses_no_connection_while_flows_are_forgotten_all_the_time() {
    connect(Mode::Iptables, false, Some(FEW_FLOWS));
}

#[test]
fn nftables_over_ipv4_loses_no_connection_while_flows_are_forgotten_all_the_time() {
    connect(Mode::Nftables, true, Some(FEW_FLOWS));
}

#[test]
fn nftables_over_ipv6_loses_no_connection_while_flows_are_forgotten_all_the_time() {
    connect(Mode::Nftables, false, Some(FEW_FLOWS));
}

fn connect(mode: Mode, ipv4: bool, max_flows: Option<u32>) {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    if let Some(flows) = max_flows {
        network["max_flows"] = json!(flows);
    }
    let add = |name: String| {
        let pod = node.sandbox(&name);
        let ip = address(&pod.add(&network), ipv4);
        (pod, ip)
    };
    let clients: Vec<Pod<'_>> =
        (0..CLIENTS).map(|number| add(format!("client{number}")).0).collect();
    let backends: Vec<(Pod<'_>, Echo)> = (0..BACKENDS)
        .map(|number| {
            let (pod, ip) = add(format!("backend{number}"));
            let echo = Echo::new(&pod, SocketAddr::new(ip, 8080), number as u8);
            (pod, echo)
        })
        .collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(|(_, echo)| echo.address()).collect();
    let services: Vec<Service> =
        (0..SERVICES).map(|number| service(number, ipv4, &addresses)).collect();
    let proxy = KubeProxy::start(&node, mode, ipv4, &services);

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        backends.iter().for_each(|(_, echo)| echo.serve(scope, &stop));
        let (services, addresses) = (&services, &addresses);
        let clients: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                scope.spawn(move || pod.enter(|| ask_all(number, services, addresses)))
            })
            .collect();
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        stop.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.expect("a client"));
    });

    let direct = node.packets(if ipv4 { Counter::DirectV4 } else { Counter::DirectV6 });
    assert!(direct > (CONNECTIONS / DIRECT) as u64, "{direct} packets took the fast path");
    assert_eq!(proxy.invalid_packets(), 0);
    let known = node.datapath().flows().count().unwrap();
    match max_flows {
        None => {
            assert!(known > CONNECTIONS, "{known} entries know every flow");
        }
        Some(flows) => assert!(known <= flows as usize, "{known} entries: nothing was forgotten"),
    }
}

/// TCP and UDP in turns, with one to three back ends.
fn service(number: usize, ipv4: bool, backends: &[SocketAddr]) -> Service {
    let (high, low) = (number / 250, number % 250 + 1);
    let cluster =
        if ipv4 { format!("10.96.{high}.{low}:80") } else { format!("[fd00:96::{high}:{low}]:80") };
    let backends = (0..1 + number % 3).map(|more| backends[(number + more) % backends.len()]);
    Service {
        number,
        protocol: if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
        cluster: cluster.parse().expect("address"),
        node_port: None,
        has_affinity: false,
        backends: backends.collect(),
    }
}

/// A client's share of the connections, many of them open at a time.
fn ask_all(client: usize, services: &[Service], backends: &[SocketAddr]) {
    let numbers: Vec<usize> = (0..CONNECTIONS / CLIENTS).collect();
    for numbers in numbers.chunks(OPEN) {
        let mut questions = Vec::new();
        for number in numbers.iter().map(|number| number * CLIENTS + client) {
            let service = &services[number / CLIENTS % SERVICES];
            let expected: Vec<u8> = (service.backends.iter())
                .filter_map(|backend| backends.iter().position(|other| other == backend))
                .map(|name| name as u8)
                .collect();
            questions.push((number, service.protocol, 0, service.cluster, expected));
            if (number / CLIENTS).is_multiple_of(DIRECT) {
                let name = number / CLIENTS / DIRECT % BACKENDS;
                let port = match service.protocol {
                    Protocol::Tcp => DIRECT_PORTS + number,
                    _ => 0,
                };
                let (target, expected) = (backends[name], vec![name as u8]);
                questions.push((number, service.protocol, port as u16, target, expected));
            }
        }
        let open: Vec<_> = questions
            .into_iter()
            .map(|(number, protocol, port, target, expected)| {
                let what = format!("connection {number} to {target} over {}", protocol.name());
                let text = (0..8 + number % (LONGEST - 8)).map(|byte| (byte ^ number) as u8);
                let question = Question::ask(protocol, port, target, text.collect());
                (question.unwrap_or_else(|error| panic!("{what}: {error}")), what, expected)
            })
            .collect();
        for (question, what, expected) in open {
            let name = question.answered_by().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(expected.contains(&name), "{what}: answered by {name}, not by {expected:?}");
        }
    }
}
