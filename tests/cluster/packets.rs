//! Packets of every size, and where they seem to come from.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::thread;

use margay_tests::cluster::{Cluster, Layout, Member, MemberPod};
use margay_tests::traffic::{Connection, Place, large_datagram_source, listen, source_seen};
use serde_json::json;

/// More than all that sockets hold by themselves.
const STREAM_BYTES: usize = 8 << 20;

#[test]
fn the_largest_packets_that_fit_arrive_whole_and_larger_ones_in_pieces() {
    let Some(cluster) = Cluster::new(Layout::TwoSubnets, 2) else { return };
    let pods = reaching(&cluster, |node| node.network("Always"));

    for ipv4 in [true, false] {
        let target = pods[1].address(ipv4);
        assert!(pings_whole(&pods[0], target, pods[0].mtu()), "{target}");
        assert!(!pings_whole(&pods[0], target, pods[0].mtu() + 1), "{target}");
        assert_eq!(large_datagram_source(&pods[0], &pods[1], target), pods[0].address(ipv4));
        assert_streams(&pods[0], &pods[1], target);
    }
}

#[test]
fn pods_with_a_larger_mtu_than_vxlan_leaves_find_the_right_one() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let pods = reaching(&cluster, |node| {
        let mut network = node.network("Always");
        network["mtu"] = json!(1500);
        network
    });

    for ipv4 in [true, false] {
        let target = pods[1].address(ipv4);
        assert_eq!(pods[0].mtu(), 1500);
        assert_streams(&pods[0], &pods[1], target);
        assert_eq!(large_datagram_source(&pods[0], &pods[1], target), pods[0].address(ipv4));
        // The first is answered by the host, which says what fits.
        assert!(!pings_whole(&pods[0], target, 1500), "{target}");
        assert!(pings_whole(&pods[0], target, 1450), "{target}");
    }
}

#[test]
fn what_goes_outside_is_masqueraded_and_what_goes_to_other_nodes_is_not() {
    for vxlan_mode in ["Always", "Never"] {
        let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
        let pods = reaching(&cluster, |node| {
            let mut network = node.network(vxlan_mode);
            for pool in network["ipam"]["pools"].as_array_mut().unwrap() {
                pool["nat_outgoing"] = json!(true);
            }
            network
        });

        for ipv4 in [true, false] {
            let [one, other] = cluster.nodes() else { panic!("two nodes") };
            let outside = router(ipv4);
            assert_eq!(source_seen(&pods[0], &World, outside), one.address(ipv4));
            let seen = source_seen(&pods[0], &pods[1], pods[1].address(ipv4));
            assert_eq!(seen, pods[0].address(ipv4));
            let seen = source_seen(&pods[0], other, other.address(ipv4));
            assert_eq!(seen, one.address(ipv4), "another node is outside of all pools");
        }
    }
}

/// The network between the nodes, where this thread is.
struct World;

impl Place for World {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }
}

fn router(ipv4: bool) -> IpAddr {
    if ipv4 { "192.168.1.254" } else { "fd99:1::254" }.parse().unwrap()
}

fn reaching(cluster: &Cluster, network: impl Fn(&Member) -> serde_json::Value) -> Vec<MemberPod> {
    cluster.start_agents();
    let nodes = cluster.nodes().iter();
    let pods: Vec<MemberPod> = nodes.map(|node| node.add("one", &network(node))).collect();
    cluster.wait_until_all_reach_each_other(&pods.iter().collect::<Vec<_>>());
    pods
}

/// Whether a packet of so many bytes, headers and all, arrives and comes back in one piece.
fn pings_whole(from: &impl Place, to: IpAddr, bytes: u32) -> bool {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let (payload, to) = ((bytes - headers).to_string(), to.to_string());
    let arguments = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &payload, &to];
    from.enter(|| Command::new("ping").args(arguments).output()).unwrap().status.success()
}

/// Sends a stream one way and back, and sees that it arrives.
fn assert_streams(client: &impl Place, server: &impl Place, target: IpAddr) {
    let listener = listen(server, SocketAddr::new(target, 0));
    let connection = Connection::open(client, listener.local_addr().unwrap(), &listener).unwrap();
    let sent: Vec<u8> = (0..STREAM_BYTES).map(|index| (index % 251) as u8).collect();
    for (mut from, mut to) in
        [(&connection.client, &connection.server), (&connection.server, &connection.client)]
    {
        let received = thread::scope(|scope| {
            scope.spawn(|| from.write_all(&sent).unwrap());
            let mut received = vec![0; STREAM_BYTES];
            to.read_exact(&mut received).unwrap();
            received
        });
        assert!(received == sent, "{target}: other bytes arrive");
    }
}
