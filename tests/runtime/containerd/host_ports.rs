//! Host ports: `portmap`, chained behind margay, translates what comes to a port of the node.

use std::net::SocketAddr;

use margay_datastore::Protocol;
use margay_tests::Node;
use margay_tests::traffic::Served;
use margay_tests_runtime::{Containerd, Pod, PodSpec, TCP, UDP};

use crate::assert_only;

const HOST_PORT: u16 = 30080;
const POD_PORT: u16 = 8080;

#[test]
fn a_host_port_leads_to_its_pod_from_outside_from_the_host_and_from_any_pod() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let spec = PodSpec::new("server");
    let spec = spec.host_port(TCP, HOST_PORT, POD_PORT).host_port(UDP, HOST_PORT, POD_PORT);
    let server = containerd.run(&spec).unwrap();
    assert_eq!(
        recorded_ports(&node, &server),
        [(Protocol::Tcp, HOST_PORT), (Protocol::Udp, HOST_PORT)]
    );
    let neighbour = containerd.run(&PodSpec::new("neighbour")).unwrap();

    for ipv4 in [true, false] {
        let inside = SocketAddr::new(server.ip(ipv4), POD_PORT);
        let served = Served::at(&server, inside);
        served.assert_has_host_port(&node, (&server, inside), &neighbour, HOST_PORT);
    }

    server.remove().unwrap();
    assert_only(&node, [&neighbour], "the server is removed");
    let rules =
        node.run(&["iptables", "-t", "nat", "-S"]) + &node.run(&["ip6tables", "-t", "nat", "-S"]);
    assert!(!rules.contains(&POD_PORT.to_string()), "{rules}");
}

/// The host ports in the endpoint's record.
fn recorded_ports(node: &Node, pod: &Pod<'_>) -> Vec<(Protocol, u16)> {
    let endpoint = node.store().endpoint(&pod.attachment()).unwrap().expect("an endpoint");
    let ports = endpoint.ports.into_iter();
    ports.map(|port| (port.protocol, port.host_port.expect("a host port"))).collect()
}
