//! Networks by hand-written configurations, and the containers on them.

use std::fs;

use margay_tests::Node;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests_runtime::{Podman, wait_until};
use serde_json::{Value, json};

use crate::{IDLE, assert_only};

#[test]
fn podman_takes_a_hand_written_network_for_its_own() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };

    podman.run(&["network", "exists", "podnet"]);
    let listed = podman.run(&["network", "ls", "--filter", "label=made-by=hand", "--quiet"]);
    let inspected: Value =
        serde_json::from_str(&podman.run(&["network", "inspect", "podnet"])).unwrap();

    assert_eq!(listed.trim(), "podnet");
    assert_eq!(inspected[0]["driver"], "margay");
    assert_eq!(inspected[0]["labels"], json!({"made-by": "hand"}));
}

#[test]
fn containers_reach_each_other_over_both_families_and_leave_nothing() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let server = podman.start("server", &[], &["httpd", "-f", "-p", "8080", "-h", "/"]);
    let client = podman.start("client", &[], &IDLE);
    assert_only(&node, [&server, &client], "two containers");

    let addresses = client.exec(&["ip", "addr", "show", "dev", "eth0"]);
    for ip in client.ips() {
        assert!(addresses.contains(&format!(" {ip}/")), "{addresses}");
        server.exec(&["ping", "-c", "1", "-W", "5", &ip.to_string()]);
    }
    let [ipv4, ipv6] = server.ips()[..] else { panic!("{:?}", server.ips()) };
    for host in [ipv4.to_string(), format!("[{ipv6}]")] {
        // The web server may still be on its way to its socket.
        let url = format!("http://{host}:8080/etc/hosts");
        let fetched = client.exec_until(&["wget", "-q", "-O", "-", &url]);
        assert!(fetched.contains("localhost"), "{fetched}");
    }
    let endpoint = node.store().endpoint(&server.default_attachment()).unwrap().unwrap();
    let recorded = endpoint.pod.unwrap();
    assert_eq!((recorded.namespace.as_str(), recorded.name.as_str()), ("", "server"));

    podman.run(&["rm", "--force", "--time", "0", "server"]);
    assert_only(&node, [&client], "one is removed");
    podman.run(&["rm", "--force", "--time", "0", "client"]);
    assert_only(&node, [], "both are removed");
    let cached = fs::read_dir("/var/lib/cni/results").unwrap();
    assert_eq!(cached.count(), 0, "podman keeps results of containers that are gone");
}

#[test]
fn a_container_that_ends_by_itself_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };

    let ends = podman.start("ends", &["--rm"], &["true"]);

    // podman's clean-up comes after the end, by a process of its own.
    wait_until("it is removed", || podman.try_run(&["container", "exists", ends.name()]).err());
    assert_only(&node, [], "it has ended");
}

#[test]
fn a_container_has_the_addresses_that_it_was_started_with() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let mac = "02:00:00:00:0a:0b";
    let wanted = ["--ip", "10.244.0.77", "--ip6", "fd00:10:244::77", "--mac-address", mac];

    let container = podman.start("static", &wanted, &IDLE);

    let ips: Vec<String> = container.ips().iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.244.0.77", "fd00:10:244::77"]);
    let shown = container.inspect();
    assert_eq!(shown["NetworkSettings"]["Networks"]["podnet"]["MacAddress"], mac);
    for ip in container.ips() {
        assert_ping(&node, ip);
    }
    let taken = podman.try_start("second", &wanted, &IDLE).unwrap_err();
    assert!(taken.contains("10.244.0.77"), "{taken}");
    podman.run(&["rm", "--force", "--time", "0", "second"]);
    assert_only(&node, [&container], "the second has nothing");
    // One address alone comes by another way, and margay gives the other.
    let v4 = podman.start("v4", &["--ip", "10.244.0.99"], &IDLE);
    let v6 = podman.start("v6", &["--ip6", "fd00:10:244::99"], &IDLE);
    assert_eq!(v4.ips()[0].to_string(), "10.244.0.99");
    assert_eq!(v6.ips()[1].to_string(), "fd00:10:244::99");
    assert_only(&node, [&container, &v4, &v6], "some have asked for one address");
}

#[test]
fn a_container_is_on_two_networks_and_can_leave_one_and_come_back() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    podman.install_network(
        "sidenet",
        &json!([{"cidr": "10.245.0.0/24"}, {"cidr": "fd00:10:245::/112"}]),
    );
    let both = podman.start("both", &["--network", "podnet", "--network", "sidenet"], &IDLE);
    let front = podman.start("front", &["--network", "podnet"], &IDLE);
    let side = podman.start("side", &["--network", "sidenet"], &IDLE);

    for (network, neighbour) in [("podnet", &front), ("sidenet", &side)] {
        assert_eq!(both.ips_on(network).len(), 2, "{network}");
        for (ip, theirs) in both.ips_on(network).into_iter().zip(neighbour.ips_on(network)) {
            assert_ping(neighbour, ip);
            assert_tcp(neighbour, &both, ip);
            assert_tcp(&both, neighbour, theirs);
        }
    }

    podman.run(&["network", "disconnect", "sidenet", "both"]);
    assert!(both.ips_on("sidenet").is_empty());
    assert!(node.store().endpoint(&both.attachment("sidenet", "eth1")).unwrap().is_none());
    for ip in both.ips_on("podnet") {
        assert_ping(&front, ip);
    }
    podman.run(&["network", "connect", "sidenet", "both"]);
    for ip in both.ips_on("sidenet") {
        assert_ping(&side, ip);
    }

    for container in [&both, &front, &side] {
        podman.run(&["rm", "--force", "--time", "0", container.name()]);
    }
    assert_only(&node, [], "all are removed");
    assert_eq!(node.store().endpoints("sidenet").unwrap(), []);
}
