//! Published ports: podman hands them to `portmap`, chained behind margay.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use margay_datastore::Protocol;
use margay_tests::Node;
use margay_tests::node::node_address;
use margay_tests::traffic::Served;
use margay_tests_runtime::Podman;

use crate::{IDLE, assert_only};

const HOST_PORT: u16 = 30080;
const CONTAINER_PORT: u16 = 8080;

#[test]
fn a_published_port_leads_to_its_container_from_everywhere() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let published = ["--publish", "30080:8080/tcp", "--publish", "30080:8080/udp"];
    let server = podman.start("server", &published, &IDLE);
    let neighbour = podman.start("neighbour", &[], &IDLE);
    let endpoint = node.store().endpoint(&server.default_attachment()).unwrap().unwrap();
    let recorded: Vec<_> = endpoint.ports.iter().map(|port| port.protocol).collect();
    // podman hands ports over in any order: the keys of a map of Go.
    assert_eq!(recorded.len(), 2, "{recorded:?}");
    assert!(recorded.contains(&Protocol::Tcp) && recorded.contains(&Protocol::Udp), "{recorded:?}");

    for ip in server.ips() {
        let inside = SocketAddr::new(ip, CONTAINER_PORT);
        let served = Served::at(&server, inside);
        let node_port = SocketAddr::new(node_address(ip.is_ipv4()), HOST_PORT);
        served.assert_reached(node.world(), node_port, "outside");
        served.assert_reached(&node, node_port, "the host");
        served.assert_reached(&neighbour, node_port, "another container");
        served.assert_reached(&server, node_port, "the container itself");
        served.assert_reached(&neighbour, inside, "another container, directly");
        if ip.is_ipv4() {
            let localhost = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HOST_PORT);
            served.assert_reached(&node, localhost, "the host, by localhost");
        }
    }

    podman.run(&["rm", "--force", "--time", "0", "server"]);
    assert_only(&node, [&neighbour], "the server is removed");
    let rules = ["iptables", "ip6tables"].map(|program| node.run(&[program, "-t", "nat", "-S"]));
    assert!(!rules.concat().contains(&CONTAINER_PORT.to_string()), "{rules:?}");
}
