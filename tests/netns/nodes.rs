//! Pods of two nodes, whose programs carry packets past both hosts' stacks, in VXLAN or as they are.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use margay_abi::Counter;
use margay_tests::neighbours::Way;
use margay_tests::pod::address;
use margay_tests::traffic::{
    Connection, PATIENCE, assert_ping, assert_tcp, listen, receive, udp, udp_exchange,
};
use margay_tests::{Neighbours, Pod, neighbours, node};

#[test]
fn a_connection_between_nodes_never_meets_either_stack() {
    on_every_way(|pods| {
        let before = pods.nodes.fast_packets(pods.ipv4);

        for _ in 0..3 {
            assert_tcp(&pods.a, &pods.b, pods.ip_b);
            assert_tcp(&pods.b, &pods.a, pods.ip_a);
        }

        assert!(pods.nodes.fast_packets(pods.ipv4) > before + 40);
        assert_eq!(pods.forwarded(), [0, 0], "{:?}", pods.nodes.way());
    });
}

#[test]
fn datagrams_and_pings_between_nodes_meet_the_stacks_once() {
    on_every_way(|pods| {
        let server = udp(&pods.b, SocketAddr::new(pods.ip_b, 0));
        let client = udp(&pods.a, SocketAddr::new(pods.ip_a, 0));
        let before = pods.nodes.fast_packets(pods.ipv4);

        for _ in 0..20 {
            udp_exchange(&client, &server, server.local_addr().unwrap()).expect("exchange");
        }
        assert!(pods.nodes.fast_packets(pods.ipv4) >= before + 38);
        assert!(pods.forwarded().into_iter().all(|packets| packets <= 1), "{:?}", pods.forwarded());

        assert_ping(&pods.a, pods.ip_b);
        assert_ping(&pods.b, pods.ip_a);
        assert!(pods.forwarded().into_iter().all(|packets| packets <= 3), "{:?}", pods.forwarded());
    });
}

#[test]
fn large_packets_between_nodes_arrive_whatever_mtu_the_pods_have() {
    for way in Way::ALL {
        let Some(nodes) = Neighbours::connected(way) else { return };
        for ipv4 in [true, false] {
            for mtu in BTreeSet::from([way.mtu(), 1500]) {
                let pod = |number, name: &str| {
                    let name = format!("{name}-{ipv4}-{mtu}");
                    nodes.pod_with(number, &name, |network| network["mtu"] = mtu.into())
                };
                let ((a, _), (b, of_b)) = (pod(0, "a"), pod(1, "b"));
                let ip_b = address(&of_b, ipv4);
                assert_transfer(&a, &b, ip_b);
                assert_datagram(&a, &b, ip_b, 8_000);
            }
        }
    }
}

#[test]
fn a_node_that_forgets_the_way_leaves_its_connections_to_the_stack() {
    on_every_way(|pods| {
        let listener = listen(&pods.b, SocketAddr::new(pods.ip_b, 0));
        let target = listener.local_addr().unwrap();
        let connection = Connection::open(&pods.a, target, &listener).expect("connect");
        let forgetful: [fn(&Neighbours); 4] = [
            |nodes| nodes.forget(0),
            |nodes| nodes.forget(1),
            |nodes| nodes.tell(0),
            |nodes| nodes.tell(1),
        ];
        for change in forgetful {
            connection.exchange().expect("exchange before");
            change(pods.nodes);
            connection.exchange().expect("exchange after");
            assert_tcp(&pods.a, &pods.b, pods.ip_b);
            assert_tcp(&pods.b, &pods.a, pods.ip_a);
            assert_ping(&pods.a, pods.ip_b);
        }
    });
}

#[test]
fn a_pod_cannot_speak_vxlan() {
    let Some(nodes) = Neighbours::connected(Way::Vxlan) else { return };
    let (a, of_a) = nodes.pod(0, "a");
    for ipv4 in [true, false] {
        let before = nodes.packets(0, Counter::DropEncapsulated);
        let socket = udp(&a, SocketAddr::new(address(&of_a, ipv4), 0));
        // Its own node, the other one, and anybody.
        let outside = node::WORLD_V4.parse().unwrap();
        let own =
            if ipv4 { neighbours::underlay_address(0, true) } else { node::node_address(false) };
        let targets = [own, neighbours::underlay_address(1, ipv4), outside];
        for target in targets.into_iter().filter(|target| target.is_ipv4() == ipv4) {
            socket.send_to(&[8, 0, 0, 0, 0, 16, 0, 0], SocketAddr::new(target, 4789)).unwrap();
        }
        let sent = if ipv4 { 3 } else { 2 };
        assert_eq!(nodes.packets(0, Counter::DropEncapsulated), before + sent);
    }
}

#[test]
fn what_comes_by_another_address_than_its_nodes_is_delivered_all_the_same() {
    let Some(nodes) = Neighbours::connected(Way::Vxlan) else { return };
    // From here on the second node sends from an address that it is not known by, as one does whose
    // routes to several networks choose it.
    nodes.enter(1, || {
        node::run(&["ip", "addr", "add", "172.30.0.77/24", "dev", "underlay0"]);
        let to = ["ip", "route", "add", "172.30.0.1", "dev", "underlay0", "src", "172.30.0.77"];
        node::run(&to);
    });
    for ipv4 in [true, false] {
        with_pods(&nodes, ipv4, |pods| {
            assert_tcp(&pods.a, &pods.b, pods.ip_b);
            assert_tcp(&pods.b, &pods.a, pods.ip_a);
            assert_ping(&pods.b, pods.ip_a);
        });
    }
    assert!(nodes.packets(0, Counter::FromNodeV4) > 10);
    assert!(nodes.packets(0, Counter::FromNodeV6) > 10);
}

/// Sends some megabytes both ways at once.
pub(crate) fn assert_transfer(client: &Pod<'_>, server: &Pod<'_>, ip: IpAddr) {
    const BYTES: usize = 4 << 20;
    let listener = listen(server, SocketAddr::new(ip, 0));
    let target = listener.local_addr().unwrap();
    let connection = Connection::open(client, target, &listener).expect("connect");
    let sent: Vec<u8> = (0..BYTES).map(|byte| (byte % 251) as u8).collect();
    std::thread::scope(|scope| {
        for (mut to, mut from) in
            [(&connection.client, &connection.server), (&connection.server, &connection.client)]
        {
            let sent = &sent;
            scope.spawn(move || to.write_all(sent).expect("send"));
            scope.spawn(move || {
                let mut received = vec![0; BYTES];
                from.read_exact(&mut received).expect("receive");
                assert!(received == *sent);
            });
        }
    });
}

fn assert_datagram(client: &Pod<'_>, server: &Pod<'_>, ip: IpAddr, bytes: usize) {
    let socket = udp(server, SocketAddr::new(ip, 0));
    let any: IpAddr = if ip.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let asker = udp(client, SocketAddr::new(any, 0));
    socket.set_read_timeout(Some(PATIENCE / 10)).unwrap();
    let (sent, mut received) = (vec![7; bytes], vec![0; bytes + 1]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Refused as too long, as soon as the way's MTU is known.
        asker.send_to(&sent, socket.local_addr().unwrap()).ok();
        match receive(&socket, &mut received) {
            Ok((length, _)) => return assert!(received[..length] == sent),
            Err(error) => assert!(Instant::now() < deadline, "{ip}, {bytes} bytes: {error}"),
        }
    }
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

impl Pods<'_> {
    /// Packets that each node's stack has forwarded.
    fn forwarded(&self) -> [u64; 2] {
        let (now, before) = (forwarded(self.nodes), self.forwarded_before);
        [now[0] - before[0], now[1] - before[1]]
    }
}

/// Runs a test for pods of two nodes, on every way between these, over both families.
fn on_every_way(test: impl Fn(&Pods<'_>)) {
    for way in Way::ALL {
        let Some(nodes) = Neighbours::connected(way) else { return };
        for ipv4 in [true, false] {
            with_pods(&nodes, ipv4, &test);
        }
    }
}

fn with_pods(nodes: &Neighbours, ipv4: bool, test: impl Fn(&Pods<'_>)) {
    for number in [0, 1] {
        nodes.enter(number, || nodes.node(number).count_forwarded_packets());
    }
    let (a, of_a) = nodes.pod(0, &format!("a-{ipv4}"));
    let (b, of_b) = nodes.pod(1, &format!("b-{ipv4}"));
    let (ip_a, ip_b) = (address(&of_a, ipv4), address(&of_b, ipv4));
    test(&Pods { nodes, a, b, ip_a, ip_b, ipv4, forwarded_before: forwarded(nodes) });
}

fn forwarded(nodes: &Neighbours) -> [u64; 2] {
    [0, 1].map(|number| nodes.enter(number, || nodes.node(number).forwarded_packets()))
}
