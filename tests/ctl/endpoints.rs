//! `margayctl endpoint`.

use margay_tests::Node;
use margay_tests::cluster::wait_until;
use margay_tests::cni::with_bandwidth;
use margay_tests::ctl::Ctl;
use margay_tests::pod::address;
use serde_json::{Value, json};

use crate::fields::assert_fields;

#[test]
fn endpoints_are_listed_with_their_addresses() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(&network));

    let listed = ctl.json(&["endpoint", "list"]);

    let endpoints = listed["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 2);
    let text = ctl.text(&["endpoint", "list"]);
    for (endpoint, result) in endpoints.iter().zip(&results) {
        assert_fields(
            endpoint,
            "attach addresses container_id created_at dataplane host_veth interface mtu \
            namespace network node pod pod_mac state",
        );
        for ipv4 in [true, false] {
            let address = address(result, ipv4).to_string();
            assert!(endpoint["addresses"].as_array().unwrap().contains(&json!(address)));
            assert!(text.contains(&address), "{address} is not in\n{text}");
        }
    }
    assert!(ctl.text(&["endpoint", "list", "--wide"]).contains("clsact"));
}

#[test]
fn a_list_is_of_this_node_and_of_what_was_asked_for() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    for (name, namespace) in [("a", "default"), ("b", "other")] {
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        let pod = node.sandbox(name);
        pod.invocation("ADD", &network).env("CNI_ARGS", &arguments).execute().success();
        if name == "b" {
            let store = node.store();
            let mut elsewhere = store.every_endpoint().unwrap().pop().unwrap();
            elsewhere.node = "another".to_owned();
            elsewhere.attachment = pod.attachment("net2", "eth0");
            store.put_endpoint(&elsewhere).unwrap();
        }
    }
    let count = |arguments: &[&str]| {
        let listed = ctl.json(&[&["endpoint", "list"], arguments].concat());
        listed["endpoints"].as_array().unwrap().len()
    };

    assert_eq!(count(&[]), 2);
    assert_eq!(count(&["-A"]), 3);
    assert_eq!(count(&["-n", "other"]), 1);
    assert_eq!(count(&["-n", "other", "-A"]), 2);
    assert_eq!(count(&["-A", "--network", "net2"]), 1);
    assert_eq!(count(&["--network", "net2"]), 0);
    assert!(ctl.text(&["endpoint", "list", "-A"]).contains("another"));
}

#[test]
fn an_endpoint_is_shown_by_whatever_name_it_goes_by() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), 80_000_000, 40_000_000);
    let ctl = Ctl::new(&node, &node.network());
    let pod = node.sandbox("0123456789abcdef");
    let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1";
    let add = pod.invocation("ADD", &network).env("CNI_ARGS", arguments);
    let result = add.execute().success();
    let [v4, v6] = [true, false].map(|ipv4| address(&result, ipv4).to_string());
    let host_veth = result["interfaces"][0]["name"].as_str().unwrap();

    let shown = ctl.json(&["endpoint", "show", "default/web"]);

    for name in
        ["web", "0123456789abcdef", "0123456", "podnet/0123456789abcdef/eth0", &v4, &v6, host_veth]
    {
        assert_eq!(ctl.json(&["endpoint", "show", name]), shown, "{name}");
    }
    assert_fields(
        &shown,
        "attach addresses bandwidth boot_id container_id created_at dataplane host_interface \
        host_mac host_routes host_veth interface labels map_entries mtu namespace neighbours netns network \
        node pod pod_addresses pod_interface pod_mac pod_routes pod_uid ports programs state \
        token_buckets unseen",
    );
    assert_eq!(shown["unseen"], json!([]));
    let link =
        node.netlink(async |netlink| netlink.link_by_name(host_veth).await.unwrap().unwrap());
    assert_eq!(shown["host_interface"]["index"], link.index);
    assert_eq!(shown["map_entries"][0]["interface_index"], link.index);
    assert_eq!(shown["map_entries"][0]["flags"], json!(["shaped"]));
    assert_eq!(shown["pod_addresses"][0], format!("{v4}/32"));
    let default = shown["pod_routes"].as_array().unwrap().iter();
    assert!(default.clone().any(|route| route["gateway"] == "169.254.1.1"), "{shown}");
    assert_eq!(shown["host_routes"][0]["destination"], format!("{v4}/32"));
    assert_eq!(shown["neighbours"][0]["permanent"], true);
    let ids = node.datapath().program_ids();
    assert_eq!(shown["programs"][0]["id"], ids.from_pod.unwrap().0);
    assert_eq!(shown["programs"][0]["build"], node.datapath().build());
    assert_eq!(shown["token_buckets"]["to_pod"]["rate_bytes_per_s"], 10_000_000);
    assert_eq!(shown["token_buckets"]["from_pod"]["rate_bytes_per_s"], 5_000_000);
    let text = ctl.text(&["endpoint", "show", "web"]);
    for part in [&v4, host_veth, "80.0 Mbit/s", "169.254.1.1", "from_pod"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn what_is_gone_of_an_endpoint_is_shown_as_missing() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    pod.destroy();
    // The kernel takes a namespace apart by and by.
    wait_until("the veth pair's end", || node.pod_links().is_empty());

    let shown = ctl.json(&["endpoint", "show", "a"]);

    assert_eq!(shown["host_interface"], Value::Null);
    assert!(shown["unseen"][0].as_str().unwrap().starts_with("pod: "), "{shown}");
    assert!(ctl.text(&["endpoint", "show", "a"]).contains("not seen"));
}

#[test]
fn a_name_that_several_go_by_is_refused_with_what_they_are() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("web-1"), node.sandbox("web-2")];
    for pod in &pods {
        pod.add(&network);
    }

    let ambiguous = ctl.run(&["endpoint", "show", "web"]);
    let unknown = ctl.run(&["endpoint", "show", "db"]);

    assert_eq!((ambiguous.code, unknown.code), (1, 1));
    for name in ["podnet/web-1/eth0", "podnet/web-2/eth0"] {
        assert!(ambiguous.stderr.contains(name), "{ambiguous:?}");
    }
    assert!(unknown.stderr.contains("endpoint list"), "{unknown:?}");
}

#[test]
fn without_a_datastore_it_says_so_and_makes_none() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let printed = ctl.run(&["endpoint", "list"]);

    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("there is no datastore at"), "{printed:?}");
    assert!(printed.stderr.contains("margayctl doctor"), "{printed:?}");
    assert!(!node.path("state/margay.db").exists());
}
