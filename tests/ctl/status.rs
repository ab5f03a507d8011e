//! `margayctl status`: the node on one screen.

use std::fs;

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;
use serde_json::json;

#[test]
fn a_node_is_on_one_screen_with_what_is_wrong_below() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["log_file_path"] = json!(node.path("cni.log"));
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/28", "block_size": 28}]);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    pods.iter().for_each(|pod| drop(pod.add(&network)));
    pods[0].invocation("ADD", &network).execute().error();
    let ctl = Ctl::new(&node, &network);
    let plugins = plugin_directory();
    let arguments = ["status", "--bin-dir", plugins.to_str().unwrap()];

    let status = ctl.json(&arguments);

    assert_eq!(status["node"], "node-under-test");
    assert_eq!(status["endpoints"]["ready"], 2);
    assert_eq!(status["networks"][0]["dataplane"], "ebpf");
    assert_eq!(status["programs"][0]["build"], node.datapath().build());
    assert_eq!(status["programs"][0]["is_current"], true);
    assert_eq!(status["maps"][0]["used"], "2");
    assert_eq!(status["pools"][0]["used"], "2");
    assert_eq!(status["pools"][0]["capacity"], "13");
    assert_eq!(status["verdict"], "healthy");
    assert_eq!(status["findings"], json!([]));
    let error = status["recent_errors"][0].as_str().unwrap();
    assert!(error.contains("podnet/a/eth0") && error.contains("attached already"), "{error}");
    let text = ctl.text(&arguments);
    for words in ["node-under-test", "2 ready", "##........ 2 of 13", "nothing is wrong"] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }

    fs::write(node.path("agent.json"), "{").unwrap();
    let text = ctl.text(&arguments);
    assert!(text.contains("error    agent-config-unusable"), "{text}");
}

#[test]
fn a_node_that_has_nothing_yet_is_shown_as_it_is() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let text = ctl.text(&["status"]);

    assert!(text.contains("0 ready") && text.contains("note     datastore-absent"), "{text}");
    assert!(!node.path("state/margay.db").exists());
}
