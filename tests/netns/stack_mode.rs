//! `"dataplane": "linux"`: the standard plugin's way, without a single program.

use margay_tests::Node;
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use serde_json::json;

#[test]
fn without_ebpf_pods_and_host_talk_over_both_families() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["dataplane"] = json!("linux");
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));

    for ipv4 in [true, false] {
        assert_ping(&a, address(&result_b, ipv4));
        assert_tcp(&b, &a, address(&result_a, ipv4));
        assert_ping(&a, node_address(ipv4));
        assert_tcp(&node, &b, address(&result_b, ipv4));
    }

    assert!(!node.bpffs_root().exists(), "nothing is pinned");
    for link in node.pod_links() {
        let sysctl = |key: &str| margay::sysctl::get(key).unwrap();
        assert_eq!(sysctl(&format!("ipv4/conf/{}/proxy_arp", link.name)), "1");
        assert_eq!(sysctl(&format!("ipv4/neigh/{}/proxy_delay", link.name)), "0");
        assert_eq!(sysctl(&format!("ipv6/conf/{}/proxy_ndp", link.name)), "1");
    }
    assert!(a.check(&network, &result_a).is_success());
    a.del(&network);
    b.del(&network);
    assert_eq!(node.pod_links(), []);
}

#[test]
fn auto_falls_back_to_the_stack_where_ebpf_is_not_to_be_had() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["dataplane"] = json!("auto");
    // No BPF file system there, so nothing can be pinned.
    network["bpffs_root"] = json!(node.path("state/not-bpffs"));
    let pod = node.sandbox("a");

    let output = pod.invocation("ADD", &network).execute();

    let result = output.success();
    assert!(output.stderr().contains("no eBPF dataplane"), "{}", output.stderr());
    assert_ping(&pod, node_address(true));
    assert!(pod.check(&network, &result).is_success());
    pod.del(&network);
}

#[test]
fn ebpf_where_it_is_not_to_be_had_is_an_error_that_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["bpffs_root"] = json!(node.path("state/not-bpffs"));
    let pod = node.sandbox("a");

    let (code, message) = pod.invocation("ADD", &network).execute().error();

    assert_eq!(code, 102, "{message}");
    assert!(message.contains("not-bpffs"), "{message}");
    assert_eq!(node.pod_links(), []);
}
