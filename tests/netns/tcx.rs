//! `"attach": "tcx"`: links in place of filters.

use margay_abi::Counter;
use margay_tests::Node;
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use serde_json::json;

#[test]
fn with_tcx_pods_talk_through_the_fast_path_and_no_qdisc_is_taken() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["attach"] = json!("tcx");
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));

    for ipv4 in [true, false] {
        assert_ping(&a, address(&result_b, ipv4));
        assert_tcp(&b, &a, address(&result_a, ipv4));
        assert_ping(&a, node_address(ipv4));
    }

    assert!(node.packets(Counter::DirectV4) > 0 && node.packets(Counter::DirectV6) > 0);
    let veth = result_a["interfaces"][0]["name"].as_str().unwrap();
    assert!(!node.run(&["tc", "qdisc", "show", "dev", veth]).contains("clsact"));
    // What the stock bandwidth plugin needs can be had.
    node.run(&["tc", "qdisc", "add", "dev", veth, "ingress"]);
    let check = a.check(&network, &result_a);
    assert!(check.is_success(), "{}", check.stdout());
}

#[test]
fn with_tcx_del_leaves_no_link_even_after_the_sandbox_is_gone() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["attach"] = json!("tcx");
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    a.add(&network);
    b.add(&network);
    let links = node.pins().join("links");
    assert_eq!(std::fs::read_dir(&links).unwrap().count(), 4);
    let del = b.invocation("DEL", &network);
    b.destroy();

    a.del(&network);
    del.execute().success();

    assert_eq!(std::fs::read_dir(&links).unwrap().count(), 0);
    assert_eq!(node.pod_links(), []);
}
