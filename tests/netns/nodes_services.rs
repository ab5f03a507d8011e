//! Services whose back end is on another node: NAT on the client's node, while both nodes' programs
//! carry everything else. Both hosts drop what their conntrack calls invalid, as kube-proxy has it.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use margay_tests::neighbours::Way;
use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::traffic::{Connection, assert_ping, listen, udp, udp_exchange};
use margay_tests::{Neighbours, Pod};

#[test]
fn direct_and_service_connections_to_another_node_live_side_by_side() {
    on_every_way(|pods| {
        let (listener, service) = pods.tcp_service();
        let direct = listener.local_addr().unwrap();
        let before = pods.nodes.fast_packets(pods.ipv4);

        let connections: Vec<Connection> = (0..20)
            .map(|turn| if turn % 2 == 0 { service } else { direct })
            .map(|target| Connection::open(&pods.a, target, &listener).expect("connect"))
            .collect();
        for _ in 0..5 {
            for connection in &connections {
                connection.exchange().expect("exchange");
            }
        }

        assert!(pods.nodes.fast_packets(pods.ipv4) > before + 100);
        assert_eq!(pods.stacks_have_seen(), [true, false], "only the client's node has to do NAT");
    });
}

#[test]
fn connections_between_nodes_survive_the_loss_of_the_flow_tables_at_any_moment() {
    on_every_way(|pods| {
        let (listener, service) = pods.tcp_service();
        for target in [service, listener.local_addr().unwrap()] {
            for forgetful in [vec![0], vec![1], vec![0, 1]] {
                let forget = || forgetful.iter().for_each(|node| pods.forget_flows(*node));
                forget();
                let mut connection = Connection::open(&pods.a, target, &listener).expect("connect");
                for round in 0..4 {
                    forget();
                    let outcome = connection.exchange();
                    outcome.unwrap_or_else(|error| panic!("{target}, round {round}: {error}"));
                    forget();
                    std::mem::swap(&mut connection.client, &mut connection.server);
                }
                for end in [connection.client, connection.server] {
                    forget();
                    drop(end);
                }
            }
        }
        assert_eq!(pods.invalid_packets(), [0, 0]);
    });
}

#[test]
fn a_service_connection_from_the_port_of_a_direct_one_that_is_over_is_answered() {
    on_every_way(|pods| {
        let (listener, service) = pods.tcp_service();
        let local = SocketAddr::new(pods.ip_a, 40_000);
        let open = |target| Connection::open_from(&pods.a, local, target, &listener);

        let direct = open(listener.local_addr().unwrap()).expect("connect directly");
        direct.exchange().expect("exchange directly");
        // Closed by the other end first, whose side of it keeps no port.
        rustix::net::sockopt::set_socket_linger(&direct.client, Some(Duration::ZERO)).unwrap();
        drop(direct);

        let through_service = open(service).expect("connect to the Service");
        for _ in 0..3 {
            through_service.exchange().expect("exchange through the Service");
        }
    });
}

#[test]
fn datagrams_through_a_service_on_another_node_are_answered_from_its_address() {
    on_every_way(|pods| {
        let (server, service) = pods.udp_service();
        let direct = server.local_addr().unwrap();
        for round in 0..10 {
            // One socket for both: conntrack has to keep the two apart.
            let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
            let order = if round % 2 == 0 { [service, direct] } else { [direct, service] };
            for target in [order[0], order[0], order[1], order[0], order[1]] {
                udp_exchange(&client, &server, target)
                    .unwrap_or_else(|error| panic!("round {round}, {target}: {error}"));
                if round > 5 {
                    pods.forget_flows(round % 2);
                }
            }
        }
        assert_ping(&pods.a, pods.ip_b);
    });
}

struct Pods<'nodes> {
    nodes: &'nodes Neighbours,
    a: Pod<'nodes>,
    b: Pod<'nodes>,
    ip_a: IpAddr,
    ip_b: IpAddr,
    ipv4: bool,
    forwarded_before: [u64; 2],
}

fn on_every_way(test: impl Fn(&Pods<'_>)) {
    for way in Way::ALL {
        let Some(nodes) = Neighbours::connected(way) else { return };
        for number in [0, 1] {
            nodes.enter(number, || {
                nodes.node(number).drop_invalid();
                nodes.node(number).count_forwarded_packets();
            });
        }
        for ipv4 in [true, false] {
            println!("{way:?}, IPv4: {ipv4}");
            let (a, of_a) = nodes.pod(0, &format!("a-{ipv4}"));
            let (b, of_b) = nodes.pod(1, &format!("b-{ipv4}"));
            let (ip_a, ip_b) = (address(&of_a, ipv4), address(&of_b, ipv4));
            let forwarded_before = forwarded(&nodes);
            test(&Pods { nodes: &nodes, a, b, ip_a, ip_b, ipv4, forwarded_before });
        }
    }
}

impl Pods<'_> {
    fn tcp_service(&self) -> (TcpListener, SocketAddr) {
        let listener = listen(&self.b, SocketAddr::new(self.ip_b, 0));
        let service = self.service_address(80);
        self.expose(Protocol::Tcp, service, listener.local_addr().unwrap());
        (listener, service)
    }

    fn udp_service(&self) -> (UdpSocket, SocketAddr) {
        let server = udp(&self.b, SocketAddr::new(self.ip_b, 0));
        let service = self.service_address(53);
        self.expose(Protocol::Udp, service, server.local_addr().unwrap());
        (server, service)
    }

    /// On the client's node.
    fn expose(&self, protocol: Protocol, service: SocketAddr, backend: SocketAddr) {
        self.nodes.enter(0, || self.nodes.node(0).expose(protocol, service, backend));
    }

    fn service_address(&self, port: u16) -> SocketAddr {
        let ip = if self.ipv4 { "10.96.0.10" } else { "fd00:96::10" };
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    fn forget_flows(&self, node: usize) {
        self.nodes.datapath(node).flows().clear().unwrap();
    }

    /// Whether each node's stack has forwarded anything.
    fn stacks_have_seen(&self) -> [bool; 2] {
        let (now, before) = (forwarded(self.nodes), self.forwarded_before);
        [now[0] > before[0], now[1] > before[1]]
    }

    fn invalid_packets(&self) -> [u64; 2] {
        [0, 1].map(|node| self.nodes.enter(node, || self.nodes.node(node).invalid_packets()))
    }
}

fn forwarded(nodes: &Neighbours) -> [u64; 2] {
    [0, 1].map(|number| nodes.enter(number, || nodes.node(number).forwarded_packets()))
}
