//! The `bandwidth` capability, seen from outside: what is refused, what CHECK notices, what is left.

use margay::naming;
use margay_abi::pod_flags;
use margay_tests::cni::with_bandwidth;
use margay_tests::pod::address;
use margay_tests::residue::assert_only;
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

const MBIT: u64 = 1_000_000;

#[test]
fn a_bandwidth_that_cannot_be_is_refused_by_field_and_value_and_in_no_dels_way() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    for (bandwidth, code, named) in [
        (json!("fast"), 7, r#"runtimeConfig.bandwidth = "fast""#),
        (json!({"ingressRate": "1M"}), 7, r#"runtimeConfig.bandwidth.ingressRate = "1M""#),
        (json!({"ingressRate": -1}), 7, "runtimeConfig.bandwidth.ingressRate = -1"),
        (json!({"egressRate": 1.5}), 7, "runtimeConfig.bandwidth.egressRate = 1.5"),
        (json!({"egressRate": 1e30}), 7, "runtimeConfig.bandwidth.egressRate = 1e+30"),
        (json!({"egressRate": 7}), 7, "runtimeConfig.bandwidth.egressRate = 7"),
        (json!({"egressBurst": 80_000}), 7, "runtimeConfig.bandwidth.egressBurst = 80000"),
        (
            json!({"ingressRate": 0, "ingressBurst": 80_000}),
            7,
            "runtimeConfig.bandwidth.ingressBurst = 80000",
        ),
        (
            json!({"egressRate": MBIT, "egressBurst": 34_359_738_368_u64}),
            7,
            "runtimeConfig.bandwidth.egressBurst = 34359738368",
        ),
        // A packet of 1500 bytes and an Ethernet header of 14 would not fit.
        (
            json!({"ingressRate": MBIT, "ingressBurst": 12_104}),
            7,
            "runtimeConfig.bandwidth.ingressBurst = 12104",
        ),
        (
            json!({"egressRate": MBIT, "unshapedSubnets": ["10.0.0.0/8"]}),
            2,
            "runtimeConfig.bandwidth.unshapedSubnets",
        ),
    ] {
        let mut network = node.network();
        network["runtimeConfig"] = json!({"bandwidth": bandwidth});

        let refused = pod.invocation("ADD", &network).execute().error();

        assert_eq!(refused.0, code, "{}", refused.1);
        assert!(refused.1.contains(named), "{named}: {}", refused.1);
        pod.del(&network);
        assert_only(&node, &[], named);
    }
}

#[test]
fn check_names_whatever_no_longer_limits_a_pod() {
    let Some(node) = Node::new() else { return };
    type Sabotage = fn(&Node, &str, &str);
    let cases: [(&str, Sabotage); 7] = [
        ("no token bucket limits host interface mgy", |node, veth, _| {
            node.run(&["tc", "qdisc", "del", "dev", veth, "root"]);
        }),
        ("the token bucket of mgy", |node, veth, _| {
            let line =
                format!("tc qdisc change dev {veth} root tbf rate 9mbit burst 128k lat 25ms");
            node.run(&line.split(' ').collect::<Vec<_>>());
        }),
        ("no token bucket limits host interface mgi", |node, _, ifb| {
            node.run(&["tc", "qdisc", "del", "dev", ifb, "root"]);
        }),
        ("the token bucket of mgi", |node, _, ifb| {
            let line = format!("tc qdisc change dev {ifb} root tbf rate 1mbit burst 64k lat 25ms");
            node.run(&line.split(' ').collect::<Vec<_>>());
        }),
        ("does not exist", |node, _, ifb| {
            node.run(&["ip", "link", "del", ifb]);
        }),
        ("is down", |node, _, ifb| {
            node.run(&["ip", "link", "set", ifb, "down"]);
        }),
        ("no filter on mgy", |node, veth, _| {
            node.run(&["tc", "filter", "del", "dev", veth, "ingress", "pref", "65535"]);
        }),
    ];
    for dataplane in ["ebpf", "linux"] {
        let mut network = with_bandwidth(&node.network(), MBIT, MBIT);
        network["dataplane"] = json!(dataplane);
        for (named, sabotage) in cases {
            let pod = node.sandbox("a");
            let result = pod.add(&network);
            let sound = pod.check(&network, &result);
            assert!(sound.is_success(), "{named}: {}", sound.stdout());
            let (veth, ifb) = links(&pod);

            sabotage(&node, &veth, &ifb);

            let (code, message) = pod.check(&network, &result).error();
            assert_eq!(code, 104, "{message}");
            assert!(message.contains(named), "{named}: {message}");
            pod.del(&network);
            assert_eq!(node.pod_links(), []);
        }
    }
}

#[test]
fn an_ifb_goes_with_its_attachment_even_after_the_sandbox_is_gone() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), 0, MBIT);
    for verb in ["DEL", "GC"] {
        let pod = node.sandbox("a");
        pod.add(&network);
        assert_eq!(node.pod_links().len(), 2);
        // As the configuration reads without what the runtime adds for an ADD.
        let mut later = node.network();
        later["cni.dev/valid-attachments"] = json!([]);
        let invocation = pod.invocation(verb, &later).without_env("CNI_NETNS");
        pod.destroy();

        invocation.execute().success();

        assert_only(&node, &[], verb);
    }
}

#[test]
fn an_add_finds_the_ifb_that_nothing_else_is_left_of() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), 0, MBIT);
    let pod = node.sandbox("a");
    let (_, ifb) = links(&pod);
    node.run(&["ip", "link", "add", &ifb, "type", "ifb"]);

    let result = pod.add(&network);

    assert_only(&node, &[(&pod, &result)], "limited");
    pod.del(&network);
    node.run(&["ip", "link", "add", &ifb, "type", "ifb"]);
    let result = pod.add(&node.network());
    assert_only(&node, &[(&pod, &result)], "not limited");
}

#[test]
fn a_link_of_somebody_else_by_the_ifbs_name_is_never_touched() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), MBIT, MBIT);
    let pod = node.sandbox("a");
    let (_, ifb) = links(&pod);
    node.run(&["ip", "link", "add", &ifb, "type", "ifb"]);
    node.run(&["ip", "link", "set", &ifb, "alias", "of the rack"]);

    let (code, message) = pod.invocation("ADD", &network).execute().error();
    pod.del(&network);

    assert_eq!(code, 103, "{message}");
    assert!(message.contains(&ifb), "{message}");
    let links = node.pod_links();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links[0].alias.as_deref(), Some("of the rack"));
}

#[test]
fn a_gc_leaves_the_ifb_of_a_valid_attachment_alone() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), MBIT, MBIT);
    let (kept, lost) = (node.sandbox("kept"), node.sandbox("lost"));
    let result = kept.add(&network);
    lost.add(&network);
    let mut valid = network.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);

    kept.invocation("GC", &valid).execute().success();

    assert_only(&node, &[(&kept, &result)], "kept");
}

#[test]
fn the_record_of_an_endpoint_says_how_fast_it_may_be() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&with_bandwidth(&node.network(), 8 * MBIT, 0));

    let endpoint = node.store().endpoint(&pod.attachment("podnet", "eth0")).unwrap().unwrap();

    let record: Value = serde_json::to_value(endpoint).unwrap();
    let limit = json!({"to_pod": {"rate_bytes_per_s": 1_000_000, "burst_bytes": 131_072}});
    assert_eq!(record["bandwidth"], limit);
    assert_eq!(node.pod_links().len(), 1, "an ifb that limits nothing");
}

/// Programs of a build that does not know the flag compare each packet with the MTU.
#[test]
fn no_build_of_the_programs_delivers_directly_to_a_limited_pod() {
    let Some(node) = Node::new() else { return };
    for (to_pod, from_pod) in [(MBIT, 0), (0, MBIT), (0, 0)] {
        let pod = node.sandbox("a");
        let network = with_bandwidth(&node.network(), to_pod, from_pod);
        let result = pod.add(&network);

        for ipv4 in [true, false] {
            let entry = node.datapath().pods().get(address(&result, ipv4)).unwrap().unwrap();
            let wanted = if to_pod + from_pod > 0 { (0, pod_flags::SHAPED) } else { (1500, 0) };
            assert_eq!((entry.mtu, entry.flags), wanted);
        }
        pod.del(&network);
    }
}

/// Names of the host veth and of the ifb.
fn links(pod: &Pod<'_>) -> (String, String) {
    let attachment = pod.attachment("podnet", "eth0");
    (naming::host_veth(&attachment), naming::ifb(&attachment))
}
