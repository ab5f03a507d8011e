//! Input that nobody sane would send, from the runtime or in the configuration: it is refused with
//! a message that names it, or it works; it never reaches a path, a log line or another pod.

use std::net::IpAddr;

use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Node, Pod};
use serde_json::{Value, json};

/// A megabyte and what it takes to be longer than that.
const MEBIBYTE: usize = 1 << 20;

#[test]
fn names_with_path_characters_are_refused_by_every_verb() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();
    for name in ["../../a", "a/b", "/a", "..", ".", "a\\..\\b/", "%2e%2e%2f"] {
        for verb in ["ADD", "CHECK", "DEL"] {
            for variable in ["CNI_CONTAINERID", "CNI_IFNAME"] {
                // A percent sign or a dot means nothing to the kernel.
                if variable == "CNI_IFNAME" && !name.contains('/') && !name.starts_with('.') {
                    continue;
                }
                let refused = pod.invocation(verb, &network).env(variable, name).execute();
                assert_refused(&refused, 4, variable);
            }
            let mut named = network.clone();
            named["name"] = json!(name);
            assert_refused(&pod.invocation(verb, &named).execute(), 7, "name");
        }
        let mut named = network.clone();
        named["nodename"] = json!(name);
        assert_refused(&pod.invocation("ADD", &named).execute(), 7, "nodename");
        let mut listed = network.clone();
        listed["cni.dev/valid-attachments"] = json!([{"containerID": name, "ifname": "eth0"}]);
        let (code, message) = pod.invocation("GC", &listed).execute().error();
        assert!([4, 7].contains(&code), "{code} {message}");
    }
    let mut delegated = network.clone();
    delegated["ipam"] = json!({"type": "../margay-ipam"});
    assert_refused(&pod.invocation("ADD", &delegated).execute(), 7, "ipam.type");
    assert_untouched(&node);
}

#[test]
fn an_interface_name_of_15_characters_works_from_end_to_end() {
    let Some(node) = Node::new() else { return };
    let (pod, peer) = (node.sandbox("a"), node.sandbox("b"));
    let mut network = node.network();
    network["default_route"] = json!(true);
    let peer_result = peer.add(&network);
    let ifname = "net1_0123456789";
    let named = |verb, config: &Value| pod.invocation(verb, config).env("CNI_IFNAME", ifname);

    let result = named("ADD", &network).execute().success();

    assert_eq!(ifname.len(), 15);
    assert_eq!(result["interfaces"][1]["name"], ifname);
    let link = pod.netlink(async |netlink| netlink.link_by_name(ifname).await.unwrap());
    assert!(link.is_some_and(|link| link.up));
    assert_ping(&pod, address(&peer_result, true));
    assert_ping(&peer, address(&result, false));
    let mut checked = network.clone();
    checked["prevResult"] = result;
    named("CHECK", &checked).execute().success();
    let longer = named("ADD", &network).env("CNI_IFNAME", "net1_01234567890").execute();
    assert_refused(&longer, 4, "CNI_IFNAME");
    named("DEL", &network).execute().success();
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn control_characters_in_a_variable_are_refused_and_do_not_reach_the_log() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    for (variable, before) in [
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", ""),
        ("CNI_NETNS", "/run/netns/"),
        ("CNI_COMMAND", ""),
        ("CNI_ARGS", "K8S_POD_NAME="),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE="),
        ("CNI_ARGS", "K8S_POD_UID="),
        ("CNI_ARGS", "K8S_POD_INFRA_CONTAINER_ID="),
        ("CNI_ARGS", "IP="),
        ("CNI_ARGS", "MAC="),
        ("CNI_ARGS", "IgnoreUnknown="),
        ("CNI_ARGS", "SOMETHING="),
    ] {
        for bad in ["a\nb", "\u{1b}[2J", "a\rb", "\u{7f}"] {
            let value = format!("{before}{bad}");
            let refused = pod.invocation("ADD", &node.network()).env(variable, &value).execute();
            assert_refused(&refused, 4, variable);
        }
    }
    assert_untouched(&node);
}

#[test]
fn control_characters_in_any_string_of_the_configuration_stay_out_of_messages_and_logs() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let strings = json!({
        "dns": {"nameservers": ["10.0.0.1"], "domain": "x", "search": ["y"], "options": ["z"]},
        "log_file_path": node.path("state/log"),
        "hostname": "h",
        "datastore_type": "local",
        "policy": {"type": "k8s", "k8s_api_root": "r"},
        "mode": "m",
        "runtimeConfig": {"ips": ["10.244.0.9"], "mac": "02:00:00:00:00:09"},
        "args": {"cni": {"labels": [{"key": "k", "value": "v"}]}},
        "dataplane": "ebpf",
        "attach": "clsact",
        "readiness_gates": ["g"],
    });
    network.as_object_mut().unwrap().extend(strings.as_object().unwrap().clone());
    network["ipam"]["pools"][0]["name"] = json!("p");
    network["ipam"]["ipv4_pools"] = json!(["p"]);
    let pod = node.sandbox("a");
    pod.add(&network);
    pod.del(&network);

    for path in string_paths(&network, "") {
        for bad in ["a\nb", "\u{1b}[2J", "/\u{7}"] {
            let mut changed = network.clone();
            *changed.pointer_mut(&path).unwrap() = json!(bad);
            let output = pod.invocation("ADD", &changed).execute();
            assert_clean(&output);
            if output.is_success() {
                pod.del(&changed);
                continue;
            }
            let (code, message) = output.error();
            assert!([2, 6, 7].contains(&code), "{path}: {code} {message}");
            let key = path.split('/').rfind(|part| part.parse::<usize>().is_err()).unwrap();
            assert!(message.contains(key), "{path}: {message}");
        }
    }
    let key = "mt\nu\u{1b}[2J";
    network[key] = json!(1400);
    assert_refused(&pod.invocation("ADD", &network).execute(), 7, r"mt\nu\u{1b}[2J");
    assert_eq!(node.pod_links(), []);
}

#[test]
fn a_configuration_of_a_mebibyte_is_taken_or_refused_in_few_words() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();
    let long = "x".repeat(MEBIBYTE);

    for key in ["kubernetes", "feature_control", "args", "capabilities"] {
        let mut large = network.clone();
        large[key] = json!({"long": long});
        pod.add(&large);
        pod.del(&large);
    }
    let mut padded = " ".repeat(MEBIBYTE).into_bytes();
    padded.extend(network.to_string().into_bytes());
    pod.invocation("ADD", &network).stdin(&padded).execute().success();
    pod.invocation("DEL", &network).stdin(&padded).execute().success();

    let pools: Vec<_> = (0..40_000)
        .map(|n| json!({"cidr": format!("11.{}.{}.{}/28", n >> 12, (n >> 4) & 255, (n & 15) << 4)}))
        .collect();
    let refusals: [(&str, Value, u64); 6] = [
        ("name", json!(long), 4),
        ("nodename", json!(format!("/{long}")), 7),
        ("mtu", json!(long), 7),
        (&long, json!(1), 7),
        ("mtu", json!(vec![0; MEBIBYTE / 2]), 7),
        ("ipam", json!({"type": "margay-ipam", "pools": pools}), 7),
    ];
    for (key, value, wanted) in refusals {
        let mut large = network.clone();
        large[key] = value;
        let (code, message) = pod.invocation("ADD", &large).execute().error();
        assert_eq!(code, wanted, "{key:.99}: {message:.200}");
        assert!(message.contains(&key[..key.len().min(99)]), "{key:.99}: {message:.200}");
        assert!(message.len() < 4_096, "{key:.99}: a message of {} bytes", message.len());
    }
    let nested = "[".repeat(MEBIBYTE);
    let (code, message) =
        pod.invocation("ADD", &network).stdin(nested.as_bytes()).execute().error();
    assert_eq!(code, 6, "{message}");
    assert_eq!(node.pod_links(), []);
}

#[test]
fn a_requested_address_outside_every_pool_is_refused_and_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let network = node.network();
    for ip in ["10.245.0.5", "192.0.2.1", "fd00:10:245::5", "10.244.0.0", "10.244.0.255"] {
        let args = format!("IP={ip}");
        let by_args = pod.invocation("ADD", &network).env("CNI_ARGS", &args).execute();
        let mut wanted = network.clone();
        wanted["runtimeConfig"] = json!({"ips": [ip]});
        for output in [by_args, pod.invocation("ADD", &wanted).execute()] {
            let (code, message) = output.error();
            assert_eq!(code, 101, "{ip}: {message}");
            assert!(message.contains(ip) && message.contains("10.244.0.0/24"), "{message}");
        }
    }
    for ip in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "::ffff:10.244.0.5", "10.244.0.5,10.244.0.6"] {
        let args = format!("IP={ip}");
        let refused = pod.invocation("ADD", &network).env("CNI_ARGS", &args).execute();
        assert_refused(&refused, 4, ip);
    }
    assert_eq!(node.pod_links(), []);
    assert_eq!(assigned(&pod), [] as [IpAddr; 0]);
}

#[test]
fn a_pool_smaller_than_a_block_gives_what_it_has_and_no_more() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.247.0.0/29"}]);
    let pods: Vec<_> = (0..5).map(|n| node.sandbox(&format!("p{n}"))).collect();
    let mut given: Vec<_> = pods.iter().map(|pod| address(&pod.add(&network), true)).collect();

    let late = node.sandbox("late");
    let (code, message) = late.invocation("ADD", &network).execute().error();

    // Neither the ends of the range nor the address that stands for the gateway.
    given.sort();
    assert_eq!(given, (2..7).map(|n| IpAddr::from([10, 247, 0, n])).collect::<Vec<_>>());
    assert_eq!(code, 101, "{message}");
    assert!(message.contains("10.247.0.0/29"), "{message}");
    pods[3].del(&network);
    assert!(given.contains(&address(&late.add(&network), true)));

    network["ipam"]["pools"][0]["block_size"] = json!(26);
    let output = node.sandbox("b").invocation("ADD", &network).execute();
    assert_refused(&output, 7, "block_size");
}

#[test]
fn overlapping_pools_are_refused_or_share_what_they_have() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    for pools in [["10.244.0.0/24", "10.244.0.128/25"], ["10.244.1.0/24", "10.0.0.0/8"]] {
        network["ipam"]["pools"] = json!([{"cidr": pools[0]}, {"cidr": pools[1]}]);
        let output = node.sandbox("a").invocation("ADD", &network).execute();
        assert_refused(&output, 7, "ipam.pools[1]");
        let (_, message) = output.error();
        assert!(message.contains(pools[0]), "{message}");
    }
    // Two networks may have the same addresses in their pools, and no address twice.
    let of = |name: &str, cidr: &str| {
        let mut network = node.network();
        network["name"] = json!(name);
        network["ipam"]["pools"] = json!([{"cidr": cidr, "block_size": 30}]);
        network
    };
    let (wide, narrow) = (of("wide", "10.246.0.0/28"), of("narrow", "10.246.0.0/29"));
    let pods: Vec<_> = (0..8).map(|n| node.sandbox(&format!("p{n}"))).collect();
    let mut given = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let network = if n % 2 == 0 { &wide } else { &narrow };
        let output = pod.invocation("ADD", network).execute();
        if output.is_success() {
            given.push(address(&output.success(), true));
        } else {
            assert_eq!((output.error().0, n % 2), (101, 1), "{}", output.stdout());
        }
    }
    let count = given.len();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), count, "an address was given twice: {given:?}");
    assert!(count >= 6, "{given:?}");

    let mut other_blocks = of("third", "10.246.0.0/28");
    other_blocks["ipam"]["pools"][0]["block_size"] = json!(31);
    let output = node.sandbox("b").invocation("ADD", &other_blocks).execute();
    assert_refused(&output, 7, "10.246.0.0/28");
}

#[test]
fn addresses_of_a_pool_that_was_removed_stay_their_pods_until_del() {
    let Some(node) = Node::new() else { return };
    let with = |cidr: &str| {
        let mut network = node.network();
        network["ipam"]["pools"] = json!([{"cidr": cidr}]);
        network
    };
    let (before, after) = (with("10.248.0.0/29"), with("10.249.0.0/29"));
    let (old, stays) = (node.sandbox("old"), node.sandbox("stays"));
    let old_result = old.add(&before);
    let stays_result = stays.add(&before);

    // The pool is gone from the configuration: the pods live on.
    let new = node.sandbox("new");
    let new_result = new.add(&after);
    assert!(address(&new_result, true).to_string().starts_with("10.249."));
    assert_ping(&new, address(&old_result, true));
    let check = old.check(&after, &old_result);
    assert!(check.is_success(), "{}", check.stdout());

    // A DEL that knows the new configuration alone gives back what is the pod's own.
    old.del(&after);
    assert_eq!(assigned(&old), [] as [IpAddr; 0]);
    assert_eq!(assigned(&stays), [address(&stays_result, true)]);

    // The pool comes back: what is out stays out, what was given back can be had.
    let (next, thief) = (node.sandbox("next"), node.sandbox("thief"));
    let wanted = |result: &Value| {
        let mut network = before.clone();
        network["runtimeConfig"] = json!({"ips": [address(result, true)]});
        network
    };
    let stolen = thief.invocation("ADD", &wanted(&stays_result)).execute();
    let (code, message) = stolen.error();
    assert_eq!(code, 101, "{message}");
    assert_eq!(address(&next.add(&wanted(&old_result)), true), address(&old_result, true));
    assert_ping(&next, address(&stays_result, true));

    // GC under a configuration without the pool spares the living and frees the others.
    let mut collected = after.clone();
    collected["cni.dev/valid-attachments"] = json!([
        {"containerID": "stays", "ifname": "eth0"}, {"containerID": "new", "ifname": "eth0"},
    ]);
    new.invocation("GC", &collected).execute().success();
    assert_eq!(assigned(&next), [] as [IpAddr; 0]);
    assert_eq!(assigned(&stays), [address(&stays_result, true)]);
    assert_ping(&new, address(&stays_result, true));
}

/// It failed with this code, and the message names the thing.
fn assert_refused(output: &CniOutput, wanted: u64, name: &str) {
    assert_clean(output);
    let (code, message) = output.error();
    assert_eq!(code, wanted, "{name}: {message:.300}");
    assert!(message.contains(name), "{name}: {message:.300}");
    assert!(!message.contains(char::is_control), "{name}: {message:?}");
}

/// Nothing that a terminal would obey, and no panic.
fn assert_clean(output: &CniOutput) {
    for text in [output.stdout(), output.stderr()] {
        let is_bad = |c: char| c.is_control() && c != '\n' && c != '\u{1b}';
        assert!(!text.contains(is_bad) && !text.contains("[2J\u{1b}"), "{text:?}");
        assert!(!text.contains("\u{1b}[2J") && !text.contains("panicked"), "{text:?}");
    }
}

/// Nothing was made: neither a link nor a database.
fn assert_untouched(node: &Node) {
    assert_eq!(node.pod_links(), []);
    assert!(!node.path("state/margay.db").exists());
}

/// What margay-ipam holds for `eth0` of a pod.
fn assigned(pod: &Pod<'_>) -> Vec<IpAddr> {
    let store = pod.node().store();
    let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "boot");
    ipam.assigned(&pod.attachment("podnet", "eth0")).unwrap()
}

/// JSON pointers to every string of a document.
fn string_paths(value: &Value, path: &str) -> Vec<String> {
    let escaped = |key: &String| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::String(_) => vec![path.to_owned()],
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| string_paths(value, &format!("{path}/{}", escaped(key))))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, value)| string_paths(value, &format!("{path}/{index}")))
            .collect(),
        _ => Vec::new(),
    }
}
