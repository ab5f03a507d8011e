//! Pods behind a Service address: NAT that the host's stack does and undoes, while the programs
//! deliver everything else. A packet that skipped the stack on its way back would hang the
//! connection.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use margay_abi::Counter;
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::traffic::{
    Connection, PATIENCE, answers_ping, assert_ping, assert_tcp, listen, receive, udp, udp_exchange,
};
use margay_tests::{Node, Pod};
use serde_json::Value;

#[test]
fn tcp_through_a_service_reaches_a_local_pod_whoever_speaks_first() {
    on_both_families(|pods| {
        let (listener, service) = pods.tcp_service(&pods.b);

        let asked = Connection::open(&pods.a, service, &listener).expect("connect");
        asked.exchange().expect("exchange");
        let mut told = Connection::open(&pods.a, service, &listener).expect("connect");
        std::mem::swap(&mut told.client, &mut told.server);
        told.exchange().expect("exchange that the server begins");
    });
}

#[test]
fn direct_and_service_connections_of_the_same_pods_live_side_by_side() {
    on_both_families(|pods| {
        let (listener, service) = pods.tcp_service(&pods.b);
        let direct_target = listener.local_addr().unwrap();
        let before = pods.direct_packets();

        let mut connections: Vec<Connection> = (0..20)
            .map(|turn| if turn % 2 == 0 { service } else { direct_target })
            .map(|target| Connection::open(&pods.a, target, &listener).expect("connect"))
            .collect();
        for _ in 0..5 {
            for connection in &mut connections {
                connection.exchange().expect("exchange");
            }
        }

        assert!(pods.direct_packets() > before + 50, "the direct ones take the fast path");
        // The other way round: what was the client serves.
        assert_tcp(&pods.b, &pods.a, pods.ip_a);
    });
}

#[test]
fn tcp_through_a_service_survives_the_loss_of_the_flow_table_at_any_moment() {
    on_both_families(|pods| {
        let (listener, service) = pods.tcp_service(&pods.b);
        pods.forget_flows();
        let mut connection = Connection::open(&pods.a, service, &listener).expect("connect");

        for round in 0..4 {
            pods.forget_flows();
            connection.exchange().unwrap_or_else(|error| panic!("round {round}: {error}"));
            pods.forget_flows();
            std::mem::swap(&mut connection.client, &mut connection.server);
        }
    });
}

#[test]
fn a_direct_connection_survives_the_loss_of_the_flow_table() {
    on_both_families(|pods| {
        let listener = listen(&pods.b, SocketAddr::new(pods.ip_b, 0));
        let target = listener.local_addr().unwrap();
        let mut connection = Connection::open(&pods.a, target, &listener).expect("connect");

        for _ in 0..4 {
            connection.exchange().expect("exchange");
            pods.forget_flows();
            std::mem::swap(&mut connection.client, &mut connection.server);
        }
    });
}

#[test]
fn a_service_connection_that_was_idle_goes_on() {
    on_both_families(|pods| {
        let (listener, service) = pods.tcp_service(&pods.b);
        let mut connection = Connection::open(&pods.a, service, &listener).expect("connect");
        connection.exchange().expect("exchange");

        std::thread::sleep(Duration::from_secs(1));
        // What other flows do to an idle one, in a table that is too small.
        pods.forget_flows();

        std::mem::swap(&mut connection.client, &mut connection.server);
        connection.exchange().expect("exchange after the pause");
    });
}

#[test]
fn udp_through_a_service_is_answered_from_its_address() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let direct = server.local_addr().unwrap();

        for _ in 0..50 {
            let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
            udp_exchange(&client, &server, service).expect("through the Service");
            let other = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
            udp_exchange(&other, &server, direct).expect("directly");
            udp_exchange(&client, &server, service).expect("through the Service again");
        }
    });
}

#[test]
fn udp_through_a_service_survives_the_loss_of_the_flow_table_between_exchanges() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));

        for round in 0..5 {
            pods.forget_flows();
            udp_exchange(&client, &server, service)
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    });
}

#[test]
fn a_udp_answer_through_a_service_survives_the_loss_of_the_flow_table() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));

        for round in 0..5 {
            pods.exchange_forgetting_between(&client, &server, service)
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    });
}

#[test]
fn a_direct_udp_flow_goes_through_the_stack_once_and_once_after_a_loss() {
    on_both_families(|pods| {
        let server = udp(&pods.b, SocketAddr::new(pods.ip_b, 0));
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        let target = server.local_addr().unwrap();
        pods.forget_flows();
        let exchanges = |forget| {
            let before = (pods.direct_packets(), pods.node.packets(Counter::StackFlow));
            for _ in 0..10 {
                udp_exchange(&client, &server, target).expect("exchange");
            }
            if forget {
                pods.exchange_forgetting_between(&client, &server, target).expect("exchange");
            }
            let after = (pods.direct_packets(), pods.node.packets(Counter::StackFlow));
            (after.0 - before.0, after.1 - before.1)
        };

        assert_eq!(exchanges(false), (19, 1));
        assert_eq!(exchanges(false), (20, 0));
        assert_eq!(exchanges(true), (21, 1), "an answer whose question is forgotten");
        assert_eq!(exchanges(false), (20, 0));
    });
}

#[test]
fn one_udp_socket_uses_a_service_and_the_pod_behind_it_while_flows_are_forgotten() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let direct = server.local_addr().unwrap();
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));

        udp_exchange(&client, &server, service).expect("through the Service");
        for turn in 0..12 {
            // Every order of the two, with the table lost before, between, and not at all.
            let target = if turn % 2 == 0 { direct } else { service };
            let outcome = match turn % 3 {
                0 => {
                    pods.forget_flows();
                    udp_exchange(&client, &server, target)
                }
                1 => udp_exchange(&client, &server, target),
                _ => pods.exchange_forgetting_between(&client, &server, target),
            };
            outcome.unwrap_or_else(|error| panic!("turn {turn}, {target}: {error}"));
        }
    });
}

/// Conntrack gives what goes to the pod another source port, and the tuple that `from_pod` saw of it
/// is what the question to the Service comes out with.
#[test]
fn what_a_socket_sends_to_a_pod_opens_no_way_around_the_service_before_it() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        udp_exchange(&client, &server, service).expect("through the Service");

        pods.forget_flows();
        client.send_to(b"to be left unanswered", server.local_addr().unwrap()).unwrap();
        receive(&server, &mut [0; 32]).expect("the datagram");

        udp_exchange(&client, &server, service).expect("through the Service again");
    });
}

#[test]
fn a_burst_of_datagrams_of_a_new_flow_arrives_as_a_whole() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        for target in [server.local_addr().unwrap(), service] {
            let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
            for number in 0..100_u8 {
                client.send_to(&[number], target).unwrap();
            }

            let mut numbers: Vec<u8> = (0..100)
                .map(|_| {
                    let mut number = [0];
                    receive(&server, &mut number).expect("every datagram");
                    number[0]
                })
                .collect();
            numbers.sort_unstable();
            assert!(numbers.into_iter().eq(0..100));
        }
    });
}

#[test]
fn one_udp_socket_may_use_the_service_and_the_pod_behind_it() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let direct = server.local_addr().unwrap();
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));

        for turn in 0..6 {
            let target = if turn % 2 == 0 { service } else { direct };
            udp_exchange(&client, &server, target)
                .unwrap_or_else(|error| panic!("turn {turn}, {target}: {error}"));
        }
    });
}

#[test]
fn an_icmp_error_for_a_service_flow_reaches_the_client() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        client.connect(service).unwrap();
        drop(server);

        assert!(is_refused(&client), "the error must name the Service, not the pod behind it");
    });
}

#[test]
fn an_icmp_error_for_a_direct_flow_reaches_the_client() {
    on_both_families(|pods| {
        let server = udp(&pods.b, SocketAddr::new(pods.ip_b, 0));
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        let target = server.local_addr().unwrap();
        udp_exchange(&client, &server, target).expect("exchange");
        client.connect(target).unwrap();
        let before = pods.direct_packets();
        drop(server);

        assert!(is_refused(&client));
        assert!(pods.direct_packets() >= before + 2, "datagram and error take the fast path");
    });
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    on_both_families(|pods| {
        let (listener, service) = pods.tcp_service(&pods.b);
        let connection = Connection::open(&pods.b, service, &listener).expect("connect");
        connection.exchange().expect("exchange with itself");
    });
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_directly_and_through_a_service() {
    on_both_families(|pods| {
        let (server, service) = pods.udp_service(&pods.b);
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        let sent: Vec<u8> = (0..6000_u32).map(|byte| byte as u8).collect();
        let mut received = vec![0; 8000];

        for target in [service, server.local_addr().unwrap(), service] {
            client.send_to(&sent, target).unwrap();
            let (length, asker) = receive(&server, &mut received).expect("all fragments");
            assert!(received[..length] == sent);
            server.send_to(&sent, asker).unwrap();
            let (length, answerer) = receive(&client, &mut received).expect("all fragments back");
            assert!(received[..length] == sent);
            assert_eq!(answerer, target);
        }
    });
}

#[test]
fn a_packet_whose_ttl_ends_at_the_node_is_answered_by_it() {
    on_both_families(|pods| {
        let target = pods.ip_b.to_string();
        let output = pods.a.enter(|| {
            let ping = ["-n", "-c", "1", "-W", "2", "-t", "1", &target];
            std::process::Command::new("ping").args(ping).output().expect("ping")
        });
        let text = String::from_utf8_lossy(&output.stdout).into_owned();

        assert!(text.contains("exceeded"), "{text}");
        assert!(text.contains(&node_address(pods.ip_b.is_ipv4()).to_string()), "{text}");
        assert_ping(&pods.a, pods.ip_b);
    });
}

struct Pods<'node> {
    node: &'node Node,
    a: Pod<'node>,
    b: Pod<'node>,
    ip_a: IpAddr,
    ip_b: IpAddr,
    ipv4: bool,
}

fn on_both_families(test: impl Fn(&Pods<'_>)) {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b): (Value, Value) = (a.add(&network), b.add(&network));
    let mut pods = Pods {
        node: &node,
        ip_a: address(&result_a, true),
        ip_b: address(&result_b, true),
        a,
        b,
        ipv4: true,
    };
    test(&pods);
    (pods.ip_a, pods.ip_b) = (address(&result_a, false), address(&result_b, false));
    pods.ipv4 = false;
    test(&pods);
    assert!(answers_ping(&pods.a, pods.ip_b));
}

impl Pods<'_> {
    fn service_address(&self) -> SocketAddr {
        let ip = if self.ipv4 { "10.96.0.10" } else { "fd00:96::10" };
        SocketAddr::new(ip.parse().unwrap(), 80)
    }

    fn tcp_service(&self, backend: &Pod<'_>) -> (std::net::TcpListener, SocketAddr) {
        let listener = listen(backend, SocketAddr::new(self.ip_b, 0));
        let service = self.service_address();
        self.node.expose(Protocol::Tcp, service, listener.local_addr().unwrap());
        (listener, service)
    }

    fn udp_service(&self, backend: &Pod<'_>) -> (UdpSocket, SocketAddr) {
        let server = udp(backend, SocketAddr::new(self.ip_b, 0));
        let service = self.service_address();
        self.node.expose(Protocol::Udp, service, server.local_addr().unwrap());
        (server, service)
    }

    fn forget_flows(&self) {
        self.node.datapath().flows().clear().unwrap();
    }

    /// As [`udp_exchange`], but what is known of flows is lost between question and answer.
    fn exchange_forgetting_between(
        &self,
        client: &UdpSocket,
        server: &UdpSocket,
        target: SocketAddr,
    ) -> std::io::Result<()> {
        let mut buffer = [0; 16];
        client.send_to(b"question", target)?;
        let (_, asker) = receive(server, &mut buffer)?;
        self.forget_flows();
        server.send_to(b"answer", asker)?;
        let (length, answerer) = receive(client, &mut buffer)?;
        assert_eq!((&buffer[..length], answerer), (&b"answer"[..], target));
        Ok(())
    }

    fn direct_packets(&self) -> u64 {
        let counter = if self.ipv4 { Counter::DirectV4 } else { Counter::DirectV6 };
        self.node.packets(counter)
    }
}

/// Sends until the socket reports that nobody listens.
fn is_refused(client: &UdpSocket) -> bool {
    let deadline = std::time::Instant::now() + PATIENCE;
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while std::time::Instant::now() < deadline {
        match client.send(b"anybody?").and_then(|_| client.recv(&mut [0; 16])) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            outcome => panic!("{outcome:?}"),
        }
    }
    false
}
