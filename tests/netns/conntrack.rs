//! A host as kube-proxy sets it up: whatever its conntrack calls invalid is not forwarded. The
//! programs keep most packets from conntrack; what they leave to it must make sense to it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::traffic::{Connection, listen};
use margay_tests::{Node, Pod};

const SERVICE_V4: &str = "10.96.0.10:80";
const SERVICE_V6: &str = "[fd00:96::10]:80";

#[test]
fn a_direct_connection_from_the_port_of_a_service_connection_leaves_that_alive() {
    on_each_target(|cluster| {
        let local = SocketAddr::new(cluster.client_ip, 40_000);
        let open =
            |target| Connection::open_from(&cluster.client, local, target, &cluster.listener);

        let through_service = open(cluster.service).expect("connect to the Service");
        through_service.exchange().expect("exchange through the Service");
        let direct = open(cluster.direct).expect("connect directly");

        for _ in 0..3 {
            direct.exchange().expect("exchange directly");
            through_service.exchange().expect("exchange through the Service again");
        }
    });
}

#[test]
fn either_end_closes_a_connection_whose_flow_was_forgotten() {
    on_each_target(|cluster| {
        for target in [cluster.direct, cluster.service] {
            for client_closes in [true, false] {
                let connection = cluster.connect(target);
                let (closing, mut other) = match client_closes {
                    true => (connection.client, connection.server),
                    false => (connection.server, connection.client),
                };

                cluster.forget_flows();
                drop(closing);

                let mut rest = Vec::new();
                let read = other.read_to_end(&mut rest);
                assert_eq!(read.expect("the end"), 0, "{target}, client closes: {client_closes}");
            }
        }
    });
}

#[test]
fn last_words_arrive_with_the_end_of_a_connection_whose_flow_was_forgotten() {
    on_each_target(|cluster| {
        let Connection { mut client, mut server } = cluster.connect(cluster.direct);
        // Held back until the end, so that they go in one packet with it.
        client.set_nodelay(false).unwrap();
        rustix::net::sockopt::set_tcp_cork(&client, true).unwrap();
        client.write_all(b"bye").unwrap();

        cluster.forget_flows();
        drop(client);

        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("the end");
        assert_eq!(received, b"bye");
    });
}

#[test]
fn a_reset_that_is_lost_with_the_flow_is_made_up_for_at_the_next_write() {
    on_each_target(|cluster| {
        let Connection { client, mut server } = cluster.connect(cluster.direct);
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();

        cluster.forget_flows();
        drop(client);

        server.write_all(b"still there?").unwrap();
        let error = server.read_exact(&mut [0; 1]).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn long_transfers_both_ways_go_on_while_flows_are_forgotten() {
    on_each_target(|cluster| {
        for target in [cluster.direct, cluster.service] {
            let connection = cluster.connect(target);
            let started = Instant::now();
            std::thread::scope(|scope| {
                let ends = [&connection.client, &connection.server];
                let transfers = ends.map(|end| scope.spawn(|| send(end)));
                let receipts = ends.map(|end| scope.spawn(|| receive(end)));
                let mut pause = (0..13).cycle().map(Duration::from_millis);
                while !transfers.iter().chain(&receipts).all(|thread| thread.is_finished()) {
                    cluster.forget_flows();
                    std::thread::sleep(pause.next().unwrap());
                }
            });
            assert!(started.elapsed() < Duration::from_secs(60), "{target} stalls");
        }
        assert_eq!(cluster.invalid_packets(), 0);
    });
}

const TRANSFER_BYTES: usize = 32 << 20;

fn send(mut to: &TcpStream) {
    // Of no round length, so that a piece that is lost or doubled shows.
    let piece: Vec<u8> = (0..100_003_u32).map(|byte| byte as u8).collect();
    for _ in 0..TRANSFER_BYTES / piece.len() {
        to.write_all(&piece).expect("send");
    }
}

fn receive(mut from: &TcpStream) {
    let mut piece = vec![0; 100_003];
    for _ in 0..TRANSFER_BYTES / piece.len() {
        from.read_exact(&mut piece).expect("receive");
        assert!(piece.iter().zip(0..100_003_u32).all(|(byte, index)| *byte == index as u8));
    }
}

/// Two pods on a host with kube-proxy's rule, and a Service that leads to one of them.
struct Cluster<'node> {
    node: &'node Node,
    client: Pod<'node>,
    client_ip: std::net::IpAddr,
    listener: TcpListener,
    direct: SocketAddr,
    service: SocketAddr,
}

fn on_each_target(test: impl Fn(&Cluster<'_>)) {
    for (ipv4, service) in [(true, SERVICE_V4), (false, SERVICE_V6)] {
        let Some(node) = Node::new() else { return };
        let network = node.network();
        let (client, server) = (node.sandbox("client"), node.sandbox("server"));
        let client_ip = address(&client.add(&network), ipv4);
        let listener = listen(&server, SocketAddr::new(address(&server.add(&network), ipv4), 0));
        let direct = listener.local_addr().unwrap();
        let service = service.parse().unwrap();
        node.expose(Protocol::Tcp, service, direct);
        node.drop_invalid();
        test(&Cluster { node: &node, client, client_ip, listener, direct, service });
    }
}

impl Cluster<'_> {
    fn connect(&self, target: SocketAddr) -> Connection {
        let connection = Connection::open(&self.client, target, &self.listener).expect("connect");
        connection.exchange().expect("exchange");
        connection
    }

    fn forget_flows(&self) {
        self.node.datapath().flows().clear().unwrap();
    }

    fn invalid_packets(&self) -> u64 {
        self.node.invalid_packets()
    }
}
