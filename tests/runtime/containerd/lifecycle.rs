//! Pods that come and go.

use std::collections::BTreeSet;

use margay_tests::Node;
use margay_tests::traffic::{Connection, listen};
use margay_tests_runtime::{Containerd, Pod, PodSpec};

use crate::{assert_only, assert_talk, four_at_a_time};

#[test]
fn sandboxes_made_at_once_have_addresses_of_their_own_and_leave_nothing() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let names: Vec<String> = (0..12).map(|number| format!("pod-{number}")).collect();

    let pods = four_at_a_time(names, |name| containerd.run(&PodSpec::new(&name)).unwrap());

    for pod in &pods {
        let shown = pod.status_ips();
        let families: Vec<bool> = shown.iter().map(std::net::IpAddr::is_ipv4).collect();
        assert_eq!(families, [true, false], "{shown:?}");
    }
    let distinct: BTreeSet<_> = pods.iter().flat_map(Pod::ips).collect();
    assert_eq!(distinct.len(), 24);
    assert_only(&node, &pods, "twelve sandboxes");
    assert_talk(&pods[0], &pods[11]);

    let (stopped, running) = pods.split_at(6);
    four_at_a_time(stopped.iter().collect(), |pod| pod.stop().unwrap());
    assert_only(&node, running, "six are stopped");
    // kubelet stops a sandbox as often as it likes, and removes it later.
    four_at_a_time(stopped.iter().collect(), |pod| pod.stop().unwrap());
    four_at_a_time(pods.iter().collect(), |pod| pod.remove().unwrap());
    assert_only(&node, [], "all are removed");
}

#[test]
fn a_pod_whose_annotations_limit_its_bandwidth_is_shaped() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let spec = PodSpec::new("limited")
        .annotation("kubernetes.io/ingress-bandwidth", "20M")
        .annotation("kubernetes.io/egress-bandwidth", "8M");

    let pod = containerd.run(&spec).unwrap();

    let endpoint = node.store().endpoint(&pod.attachment()).unwrap().unwrap();
    let rates = [endpoint.bandwidth.to_pod, endpoint.bandwidth.from_pod]
        .map(|limit| limit.map(|limit| limit.rate_bytes_per_s));
    assert_eq!(rates, [Some(2_500_000), Some(1_000_000)]);
    let shown = node.run(&["tc", "qdisc", "show", "dev", &endpoint.host_veth, "root"]);
    assert!(shown.contains("tbf") && shown.contains("rate 20Mbit"), "{shown}");
    assert_only(&node, [&pod], "a shaped pod");
    pod.remove().unwrap();
    assert_only(&node, [], "it is removed");
}

#[test]
fn processes_in_containers_reach_each_other_over_both_families() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let server = containerd.run(&PodSpec::new("server")).unwrap();
    let client = containerd.run(&PodSpec::new("client")).unwrap();
    let serving = server.start_container(&["httpd", "-f", "-p", "8080", "-h", "/"]);
    let asking = client.start_container(&["sleep", "2147483647"]);

    assert_eq!(asking.exec(&["hostname"]).trim(), "client");
    let addresses = asking.exec(&["ip", "addr", "show", "dev", "eth0"]);
    for ip in client.ips() {
        assert!(addresses.contains(&format!(" {ip}/")), "{addresses}");
    }
    let ping_back = client.ip(true).to_string();
    serving.exec(&["ping", "-c", "1", "-W", "5", &ping_back]);
    for url in [
        format!("http://{}:8080/etc/hosts", server.ip(true)),
        format!("http://[{}]:8080/etc/hosts", server.ip(false)),
    ] {
        // The web server may still be on its way to its socket.
        let fetched = asking.exec_until(&["wget", "-q", "-O", "-", &url]);
        assert!(fetched.contains("localhost"), "{fetched}");
    }
}

#[test]
fn the_late_end_of_a_pods_first_sandbox_leaves_its_second_alone() {
    let Some(node) = Node::new() else { return };
    let containerd = Containerd::start(&node, None);
    let other = containerd.run(&PodSpec::new("other")).unwrap();
    let first = containerd.run(&PodSpec::new("web")).unwrap();
    first.kill();
    let second = containerd.run(&PodSpec::new("web").attempt(1)).unwrap();
    assert_only(&node, [&other, &first, &second], "the first is dead, but nobody took it away");
    let listener = listen(&second, (second.ip(true), 0).into());
    let target = listener.local_addr().unwrap();
    let connection = Connection::open(&other, target, &listener).unwrap();

    first.stop().unwrap();
    first.remove().unwrap();

    assert_only(&node, [&other, &second], "the first has gone");
    connection.exchange().unwrap();
    assert_talk(&other, &second);
}
