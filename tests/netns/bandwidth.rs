//! The `bandwidth` capability: what a pod receives and sends is as fast as asked for and no faster,
//! whatever the programs are attached by, and the fast path is for the others.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use margay_abi::Counter;
use margay_tests::cni::with_bandwidth;
use margay_tests::node::{node_address, reference_plugin_directory};
use margay_tests::pod::address;
use margay_tests::traffic::{
    Connection, PATIENCE, Place, assert_ping, assert_tcp, listen, receive, udp, udp_exchange,
};
use margay_tests::{CniOutput, Node, Pod};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};

/// What a busy machine holds as well.
const TO_POD_BITS: u64 = 20_000_000;
const FROM_POD_BITS: u64 = 32_000_000;

#[test]
fn rates_hold_in_both_directions_behind_clsact() {
    rates_hold_in_both_directions("attach", "clsact");
}

#[test]
fn rates_hold_in_both_directions_behind_tcx() {
    rates_hold_in_both_directions("attach", "tcx");
}

#[test]
fn rates_hold_in_both_directions_without_ebpf() {
    rates_hold_in_both_directions("dataplane", "linux");
}

fn rates_hold_in_both_directions(key: &str, value: &str) {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network[key] = json!(value);
    let (shaped, other) = (node.sandbox("shaped"), node.sandbox("other"));
    let asked = with_bandwidth(&network, TO_POD_BITS, FROM_POD_BITS);
    let (result, other_result) = (shaped.add(&asked), other.add(&network));
    let (v4, v6) = (address(&result, true), address(&result, false));

    assert_tcp_rate(FROM_POD_BITS, &shaped, &other, address(&other_result, true));
    assert_tcp_rate(TO_POD_BITS, &other, &shaped, v6);
    assert_tcp_rate(FROM_POD_BITS, &shaped, &node, node_address(false));
    assert_tcp_rate(TO_POD_BITS, &node, &shaped, v4);
    assert_udp_rate(FROM_POD_BITS, &shaped, &other, address(&other_result, false));
    assert_udp_rate(TO_POD_BITS, &other, &shaped, v4);

    shaped.del(&asked);
    other.del(&network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn a_rate_for_one_direction_leaves_the_other_alone() {
    let Some(node) = Node::new() else { return };
    for (to_pod, from_pod) in [(TO_POD_BITS, 0), (0, FROM_POD_BITS)] {
        let network = with_bandwidth(&node.network(), to_pod, from_pod);
        let pod = node.sandbox("a");
        let ip = address(&pod.add(&network), true);

        if to_pod > 0 {
            assert_tcp_rate(TO_POD_BITS, &node, &pod, ip);
            assert_unlimited(&pod, &node, node_address(true));
        } else {
            assert_tcp_rate(FROM_POD_BITS, &pod, &node, node_address(true));
            assert_unlimited(&node, &pod, ip);
        }

        pod.del(&network);
        assert_eq!(node.pod_links(), []);
    }
}

#[test]
fn the_fast_path_is_for_pods_without_a_limit() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods = ["a", "b", "receives", "sends"].map(|name| node.sandbox(name));
    let asked = [(0, 0), (0, 0), (TO_POD_BITS, 0), (0, FROM_POD_BITS)];
    let results = [0, 1, 2, 3].map(|pod: usize| {
        let (to_pod, from_pod) = asked[pod];
        pods[pod].add(&with_bandwidth(&network, to_pod, from_pod))
    });
    let direct = || [Counter::DirectV4, Counter::DirectV6].map(|counter| node.packets(counter));

    for (client, server) in [(0, 2), (2, 0), (1, 3), (3, 1), (2, 3), (3, 2)] {
        for ipv4 in [true, false] {
            assert_tcp(&pods[client], &pods[server], address(&results[server], ipv4));
            assert_ping(&pods[client], address(&results[server], ipv4));
        }
    }

    assert_eq!(direct(), [0, 0], "packets of a limited pod took the fast path");
    for ipv4 in [true, false] {
        assert_tcp(&pods[0], &pods[1], address(&results[1], ipv4));
    }
    assert!(direct().into_iter().all(|packets| packets > 0), "{:?}", direct());
}

/// A limited pod may come to have an address that another had, with whom others had direct flows.
#[test]
fn flows_that_were_direct_are_not_when_the_pod_behind_them_is_limited() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let ip_a = address(&a.add(&network), true);
    let ip_b = address(&b.add(&network), true);
    let client = udp(&a, SocketAddr::new(ip_a, 4000));
    let server = udp(&b, SocketAddr::new(ip_b, 5000));
    let exchange = |server: &UdpSocket| {
        udp_exchange(&client, server, SocketAddr::new(ip_b, 5000)).unwrap();
    };
    exchange(&server);
    exchange(&server);
    let before = node.packets(Counter::DirectV4);
    assert_eq!(before, 3, "all but the question that the flow began with");
    drop(server);
    b.del(&network);

    let mut limited = with_bandwidth(&network, TO_POD_BITS, 0);
    limited["runtimeConfig"]["ips"] = json!([ip_b]);
    b.add(&limited);
    exchange(&udp(&b, SocketAddr::new(ip_b, 5000)));

    assert_eq!(node.packets(Counter::DirectV4), before);
}

#[test]
fn rates_beyond_32_bits_and_jumbo_frames_are_held_by_the_kernel_as_asked() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["mtu"] = json!(9000);
    let network = with_bandwidth(&network, 400_000_000_000, 80_000_000_000);
    let pod = node.sandbox("a");

    let result = pod.add(&network);

    let links = node.pod_links();
    assert_eq!(links.len(), 2, "{links:?}");
    for link in links {
        let rate = if link.kind == "ifb" { 10_000_000_000 } else { 50_000_000_000 };
        let bucket =
            node.netlink(async |netlink| netlink.token_bucket(link.index).await.unwrap()).unwrap();
        assert_eq!((bucket.rate_bytes_per_s, link.mtu), (rate, 9000));
    }
    assert_tcp(&pod, &node, node_address(true));
    let check = pod.check(&network, &result);
    assert!(check.is_success(), "{}", check.stdout());
}

#[test]
fn with_tcx_the_stock_bandwidth_plugin_shapes_when_it_is_chained() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["attach"] = json!("tcx");
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    stock_bandwidth(&pod, "ADD", &result, FROM_POD_BITS).success();

    assert_tcp_rate(FROM_POD_BITS, &pod, &node, node_address(true));
    assert_tcp_rate(TO_POD_BITS, &node, &pod, address(&result, false));
    let check = pod.check(&network, &result);
    assert!(check.is_success(), "{}", check.stdout());
    stock_bandwidth(&pod, "DEL", &result, FROM_POD_BITS).success();
    pod.del(&network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn with_clsact_the_stock_bandwidth_plugin_shapes_what_goes_to_the_pod_alone() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    stock_bandwidth(&pod, "ADD", &result, 0).success();

    assert_tcp_rate(TO_POD_BITS, &node, &pod, address(&result, true));
    stock_bandwidth(&pod, "DEL", &result, 0).success();
    pod.del(&network);

    let result = pod.add(&network);
    let refused = stock_bandwidth(&pod, "ADD", &result, FROM_POD_BITS);
    assert!(refused.stdout().contains("create ingress qdisc: file exists"), "{}", refused.stdout());
    stock_bandwidth(&pod, "DEL", &result, FROM_POD_BITS).success();
    pod.del(&network);
    assert_eq!(node.pod_links(), []);
}

fn stock_bandwidth(pod: &Pod<'_>, verb: &str, result: &Value, from_pod_bits: u64) -> CniOutput {
    let mut previous = result.clone();
    previous["cniVersion"] = json!("1.0.0");
    let burst_of = |rate: u64| if rate > 0 { 2_000_000 } else { 0 };
    let config = json!({
        "cniVersion": "1.0.0", "name": "podnet", "type": "bandwidth", "prevResult": previous,
        "ingressRate": TO_POD_BITS, "ingressBurst": burst_of(TO_POD_BITS),
        "egressRate": from_pod_bits, "egressBurst": burst_of(from_pod_bits),
    });
    let directory = reference_plugin_directory();
    let plugin = directory.join("bandwidth");
    let invocation = pod.invocation_of(plugin.to_str().unwrap(), verb, &config);
    invocation.env("CNI_PATH", directory.to_str().unwrap()).execute()
}

/// What was measured, in bits of payload per second.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// All the time.
    mean: u64,
    /// In the best of several windows: a machine that had something else to do makes others slow.
    best: u64,
}

impl Measured {
    /// Within a tenth of what was asked for. Headers are payload to the kernel's buckets, and not
    /// here.
    #[track_caller]
    fn assert_is(self, asked: u64) {
        eprintln!("{asked} asked for, {self:?}");
        assert!(self.best >= enough(asked), "{asked} asked for, {self:?}");
        assert!(self.mean <= asked * 11 / 10, "{asked} asked for, {self:?}");
    }
}

fn enough(asked: u64) -> u64 {
    asked * 9 / 10
}

#[track_caller]
fn assert_tcp_rate(asked: u64, client: &impl Place, server: &impl Place, ip: IpAddr) {
    tcp_rate(asked, client, server, ip).assert_is(asked);
}

#[track_caller]
fn assert_udp_rate(asked: u64, client: &impl Place, server: &impl Place, ip: IpAddr) {
    udp_rate(asked, client, server, ip).assert_is(asked);
}

#[track_caller]
fn assert_unlimited(client: &impl Place, server: &impl Place, ip: IpAddr) {
    let far_more = 3 * FROM_POD_BITS;
    let measured = tcp_rate(far_more, client, server, ip);
    assert!(measured.best >= enough(far_more), "{measured:?}");
}

const WINDOW: Duration = Duration::from_millis(500);
const FEWEST_WINDOWS: u32 = 4;
const MOST_WINDOWS: u32 = 40;

/// Counts what `receive` returns, after a window that the burst goes into, until there are enough
/// windows for an even mean and one of them was as good as it has to be.
fn measure(asked: u64, mut receive: impl FnMut() -> usize) -> Measured {
    let mut window = || {
        let began = Instant::now();
        let mut bytes = 0;
        while began.elapsed() < WINDOW {
            bytes += receive() as u64;
        }
        (bytes * 8, began.elapsed())
    };
    let per_second = |bits: u64, time: Duration| (bits as f64 / time.as_secs_f64()) as u64;
    window();
    let (mut bits, mut time, mut best) = (0, Duration::ZERO, 0);
    for number in 1..=MOST_WINDOWS {
        let (more_bits, more_time) = window();
        (bits, time) = (bits + more_bits, time + more_time);
        best = best.max(per_second(more_bits, more_time));
        if number >= FEWEST_WINDOWS && best >= enough(asked) {
            break;
        }
    }
    Measured { mean: per_second(bits, time), best }
}

/// The rate of a TCP stream from `client` to `server`.
fn tcp_rate(asked: u64, client: &impl Place, server: &impl Place, ip: IpAddr) -> Measured {
    let listener = listen(server, SocketAddr::new(ip, 0));
    // Little enough that a receiver which was held up has little to make up for.
    set_socket_recv_buffer_size(&listener, 128 * 1024).unwrap();
    let target = listener.local_addr().unwrap();
    let Connection { mut client, mut server } =
        Connection::open(client, target, &listener).expect("connect");
    let mut buffer = vec![0; 16 * 1024];
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || while client.write_all(&[0; 16 * 1024]).is_ok() {});
        let measured = measure(asked, || match server.read(&mut buffer) {
            // Whatever the kernel wants the thread for.
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            received => received.expect("receive"),
        });
        server.shutdown(std::net::Shutdown::Both).unwrap();
        drop(server);
        sender.join().unwrap();
        measured
    })
}

/// The rate at which datagrams arrive of which far more are sent.
fn udp_rate(asked: u64, client: &impl Place, server: &impl Place, ip: IpAddr) -> Measured {
    let server = udp(server, SocketAddr::new(ip, 0));
    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let client = udp(client, SocketAddr::new(any, 0));
    client.connect(server.local_addr().unwrap()).unwrap();
    let is_enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&is_enough);
        scope.spawn(|| {
            while !is_enough.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    let sent = client.send(&[0; 1400]);
                    assert!(sent.is_ok() || sent.is_err_and(|error| is_full(error.kind())));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let began = Instant::now();
        measure(asked, || {
            assert!(began.elapsed() < 10 * PATIENCE, "nothing arrives");
            receive(&server, &mut [0; 2000]).expect("receive").0
        })
    })
}

/// Ends a thread that looks at it, also when the test fails: the scope waits for that thread.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The sender's own queue.
fn is_full(kind: ErrorKind) -> bool {
    kind == ErrorKind::WouldBlock || kind == ErrorKind::Interrupted
}
