//! Services by kube-proxy's rules in both of its modes, over both families: every way to one, with its
//! rule against invalid packets at work, and what the programs know of flows lost at any moment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use margay_abi::{Counter, HOST_VETH_MAC};
use margay_tests::echo::{Echo, Question};
use margay_tests::kube_proxy::{KubeProxy, Mode, Service};
use margay_tests::node::node_address;
use margay_tests::packet::{self, Ipv4, Ipv6, ethernet, tcp_flags};
use margay_tests::pod::address;
use margay_tests::sctp::{self, Sctp};
use margay_tests::service::Protocol;
use margay_tests::traffic::{PATIENCE, Place};
use margay_tests::{Node, Pod};

const NODE_PORT: u16 = 30_080;

#[test]
fn every_place_reaches_every_backend_by_cluster_address_and_node_port() {
    on_each_cluster(|cluster| {
        let services = cluster.services(|service, pods| Service {
            node_port: Some(NODE_PORT),
            backends: pods.to_vec(),
            ..service
        });
        cluster.serve(&services, || {
            for Service { protocol, cluster: target, .. } in &services {
                let node_port = SocketAddr::new(node_address(cluster.ipv4), NODE_PORT);
                let mut seen = BTreeSet::new();
                for _ in 0..12 {
                    for pod in &cluster.pods {
                        seen.insert(cluster.ask(pod, *protocol, *target));
                        seen.insert(cluster.ask(pod, *protocol, node_port));
                    }
                    seen.insert(cluster.ask(cluster.node, *protocol, *target));
                    seen.insert(cluster.ask(cluster.node, *protocol, node_port));
                    seen.insert(cluster.ask(cluster.node.world(), *protocol, node_port));
                    cluster.forget_flows();
                }
                assert_eq!(seen.len(), cluster.pods.len(), "not all back ends have their share");
            }
        });
    });
}

#[test]
fn a_client_stays_at_its_backend() {
    on_each_cluster(|cluster| {
        let services = cluster.services(|service, pods| Service {
            has_affinity: true,
            node_port: Some(NODE_PORT),
            backends: pods.to_vec(),
            ..service
        });
        cluster.serve(&services, || {
            for Service { protocol, cluster: target, .. } in &services {
                for pod in &cluster.pods {
                    let first = cluster.ask(pod, *protocol, *target);
                    for _ in 0..10 {
                        assert_eq!(cluster.ask(pod, *protocol, *target), first);
                        cluster.forget_flows();
                    }
                }
                let node_port = SocketAddr::new(node_address(cluster.ipv4), NODE_PORT);
                let world = cluster.node.world();
                let first = cluster.ask(world, *protocol, node_port);
                for _ in 0..10 {
                    assert_eq!(cluster.ask(world, *protocol, node_port), first);
                }
            }
        });
    });
}

#[test]
fn a_pod_that_is_its_only_backend_gets_itself() {
    on_each_cluster(|cluster| {
        let services = cluster.services(|service, pods| Service {
            node_port: Some(NODE_PORT),
            backends: vec![pods[1]],
            ..service
        });
        cluster.serve(&services, || {
            for Service { protocol, cluster: target, .. } in &services {
                let node_port = SocketAddr::new(node_address(cluster.ipv4), NODE_PORT);
                for _ in 0..5 {
                    assert_eq!(cluster.ask(&cluster.pods[1], *protocol, *target), 1);
                    assert_eq!(cluster.ask(&cluster.pods[1], *protocol, node_port), 1);
                    cluster.forget_flows();
                }
            }
        });
    });
}

#[test]
fn an_sctp_association_through_a_service_survives_the_loss_of_the_flow_table() {
    on_each_cluster(|cluster| {
        let services = cluster.services(|service, pods| Service {
            protocol: Protocol::Sctp,
            backends: vec![pods[1]],
            ..service
        });
        let proxy = KubeProxy::start(cluster.node, cluster.mode, cluster.ipv4, &services[..1]);
        let service = services[0].cluster;
        let [client, server] = [0, 1].map(|number| Sctp::new(&cluster.pods[number], cluster.ipv4));
        let (own, backend) = (SocketAddr::new(cluster.ips[0], 5000), services[0].backends[0]);

        for chunk in sctp::association() {
            cluster.forget_flows();
            let (from, to, source, target, seen_from, seen_at) = match chunk.of_client {
                true => (&client, &server, own, service, own, backend),
                false => (&server, &client, backend, own, service, own),
            };
            from.send(source.port(), target, &chunk);
            let heard = to.receive().unwrap_or_else(|error| panic!("{chunk:?}: {error}"));
            assert_eq!((heard.from, heard.to_port), (seen_from, seen_at.port()), "{chunk:?}");
            assert_eq!(heard.chunk, chunk.bytes);
        }
        assert_eq!(proxy.invalid_packets(), 0);
    });
}

#[test]
fn an_sctp_association_between_pods_survives_the_loss_of_the_flow_table() {
    on_each_cluster(|cluster| {
        let proxy = KubeProxy::start(cluster.node, cluster.mode, cluster.ipv4, &[]);
        let [client, server] = [0, 1].map(|number| Sctp::new(&cluster.pods[number], cluster.ipv4));
        let ends = [0, 1].map(|number| SocketAddr::new(cluster.ips[number], 5000));
        let before = cluster.direct_packets();

        for chunk in &sctp::association() {
            cluster.forget_flows();
            let (from, to, target) = match chunk.of_client {
                true => (&client, &server, ends[1]),
                false => (&server, &client, ends[0]),
            };
            from.send(5000, target, chunk);
            assert_eq!(to.receive().expect("the packet").chunk, chunk.bytes);
        }

        assert_eq!(cluster.direct_packets(), before, "conntrack has to see all of it");
        assert_eq!(proxy.invalid_packets(), 0);
    });
}

#[test]
fn what_conntrack_makes_no_sense_of_is_dropped_and_counted() {
    on_each_cluster(|cluster| {
        let proxy = KubeProxy::start(cluster.node, cluster.mode, cluster.ipv4, &[]);
        let pod = &cluster.pods[0];
        let link = async |netlink: margay::netlink::Netlink| netlink.link_by_name("eth0").await;
        let mac = pod.netlink(link).unwrap().unwrap().mac;
        let reset = packet::tcp(5000, 80, tcp_flags::RST);
        let frame = match (cluster.ips[0], cluster.ips[1]) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let packet = Ipv4::new(src.octets(), dst.octets(), 6).packet(&reset);
                ethernet(HOST_VETH_MAC, mac, 0x0800, &packet)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let packet = Ipv6::new(src.octets(), dst.octets(), 6).packet(&reset);
                ethernet(HOST_VETH_MAC, mac, 0x86dd, &packet)
            }
            families => panic!("{families:?}"),
        };

        pod.send_frame("eth0", &frame);

        let deadline = Instant::now() + PATIENCE;
        while proxy.invalid_packets() == 0 {
            assert!(Instant::now() < deadline, "not counted");
        }
    });
}

/// Three pods, each with a server.
struct Cluster<'node> {
    node: &'node Node,
    mode: Mode,
    ipv4: bool,
    pods: Vec<Pod<'node>>,
    ips: Vec<IpAddr>,
}

fn on_each_cluster(test: impl Fn(&Cluster<'_>)) {
    for mode in [Mode::Iptables, Mode::Nftables] {
        for ipv4 in [true, false] {
            let Some(node) = Node::new() else { return };
            let pods: Vec<Pod<'_>> = ["a", "b", "c"].map(|name| node.sandbox(name)).into();
            let network = node.network();
            let ips = pods.iter().map(|pod| address(&pod.add(&network), ipv4)).collect();
            test(&Cluster { node: &node, mode, ipv4, pods, ips });
        }
    }
}

impl Cluster<'_> {
    /// A Service over TCP and one over UDP, at the same addresses.
    fn services(&self, shape: impl Fn(Service, &[SocketAddr]) -> Service) -> [Service; 2] {
        let ip = if self.ipv4 { "10.96.0.10" } else { "fd00:96::10" };
        let backends: Vec<_> = self.ips.iter().map(|ip| SocketAddr::new(*ip, 8080)).collect();
        [(0, Protocol::Tcp), (1, Protocol::Udp)].map(|(number, protocol)| {
            let service = Service {
                number,
                protocol,
                cluster: SocketAddr::new(ip.parse().unwrap(), 80),
                node_port: None,
                has_affinity: false,
                backends: Vec::new(),
            };
            shape(service, &backends)
        })
    }

    /// Runs `work` while kube-proxy's rules are there and every pod's server answers.
    fn serve(&self, services: &[Service], work: impl FnOnce()) {
        let proxy = KubeProxy::start(self.node, self.mode, self.ipv4, services);
        let servers: Vec<Echo> = (self.pods.iter().zip(&self.ips).zip(0..))
            .map(|((pod, ip), name)| Echo::new(pod, SocketAddr::new(*ip, 8080), name))
            .collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also where `work` panics: the scope waits for the servers.
            let _stop = Stop(&stop);
            servers.iter().for_each(|server| server.serve(scope, &stop));
            work();
        });
        assert_eq!(proxy.invalid_packets(), 0);
    }

    /// The name of the server that answers.
    fn ask(&self, place: &impl Place, protocol: Protocol, target: SocketAddr) -> u8 {
        let text = b"a question of some length".repeat(20);
        place.enter(|| Question::ask(protocol, 0, target, text)?.answered_by()).unwrap_or_else(
            |error| {
                let (mode, protocol) = (self.mode, protocol.name());
                panic!("{mode:?}, {target} over {protocol}: {error}")
            },
        )
    }

    fn forget_flows(&self) {
        self.node.datapath().flows().clear().unwrap();
    }

    fn direct_packets(&self) -> u64 {
        self.node.packets(if self.ipv4 { Counter::DirectV4 } else { Counter::DirectV6 })
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
