//! What pods of pools with `nat_outgoing` send outside leaves with the node's address; nothing else
//! does.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use margay::nat::TABLE;
use margay_abi::Counter;
use margay_tests::node::{self, WORLD_V4, WORLD_V6, node_address, reference_plugin_directory};
use margay_tests::pod::address;
use margay_tests::service::Protocol;
use margay_tests::traffic::{
    Connection, answers_ping, assert_ping, datagram_source, large_datagram_source, listen,
    source_seen,
};
use margay_tests::{Node, Pod};
use rustix::mount::mount_bind;
use serde_json::{Value, json};

const NAT_MD: &str = include_str!("../../docs/nat.md");
const FAMILIES: [bool; 2] = [true, false];

#[test]
fn pods_reach_an_outside_that_knows_no_way_back_with_the_nodes_address() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let network = node.network_with_nat();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    for ipv4 in FAMILIES {
        let world = world(ipv4);
        assert_ping(&pod, world);
        assert_eq!(source_seen(&pod, node.world(), world), node_address(ipv4));
    }
    assert!(pod.check(&network, &result).is_success());
    assert_eq!(node.packets(Counter::DirectV4), 0);
    assert_eq!(node.datapath().flows().count().unwrap(), 0, "nothing is learned of it");
}

#[test]
fn the_documented_table_is_the_one_that_is_made_and_can_be_deleted_twice() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network_with_nat());

    assert!(NAT_MD.contains(&ruleset(&node)), "{}", ruleset(&node));
    let deletion = &documented_commands("## The table")[1];
    node.run(&["sh", "-c", deletion]);
    node.run(&["sh", "-c", deletion]);
    assert_eq!(tables(&node), "");
}

#[test]
fn the_documented_rules_for_iptables_do_the_same() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    for command in documented_commands("## With iptables") {
        node.run(&["sh", "-c", &command]);
    }
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&node.network()), b.add(&node.network()));

    for ipv4 in FAMILIES {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        assert_eq!(source_seen(&a, node.world(), world(ipv4)), node_address(ipv4));
        assert_eq!(source_seen(&a, &b, ip_b), ip_a);
        assert_eq!(source_seen(&a, &node, node_address(ipv4)), ip_a);
        assert_ping(&a, world(ipv4));
    }
}

#[test]
fn without_nat_the_outside_sees_the_pods_address_and_cannot_answer() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let pod = node.sandbox("a");
    let result = pod.add(&node.network());

    for ipv4 in FAMILIES {
        assert!(!answers_ping(&pod, world(ipv4)));
        assert_eq!(datagram_source(&pod, node.world(), world(ipv4)), address(&result, ipv4));
    }
    assert_eq!(tables(&node), "");
}

#[test]
fn pods_and_the_host_see_each_others_own_addresses() {
    for dataplane in ["ebpf", "linux"] {
        // A node of its own for each: a thread can be one only once.
        std::thread::spawn(move || {
            let Some(node) = node_in_a_world_without_routes() else { return };
            let mut network = node.network_with_nat();
            network["dataplane"] = json!(dataplane);
            let (a, b) = (node.sandbox("a"), node.sandbox("b"));
            let (result_a, result_b) = (a.add(&network), b.add(&network));

            for ipv4 in FAMILIES {
                let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
                assert_eq!(source_seen(&a, &b, ip_b), ip_a, "{dataplane}: pod to pod");
                let through_the_stack = large_datagram_source(&a, &b, ip_b);
                assert_eq!(through_the_stack, ip_a, "{dataplane}: pod to pod, in fragments");
                assert_eq!(source_seen(&a, &node, node_address(ipv4)), ip_a, "pod to host");
                assert_eq!(source_seen(&node, &a, ip_a), node_address(ipv4), "host to pod");
                assert_ping(&a, world(ipv4));
            }
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_service_sees_the_pod_that_asks_and_the_pod_still_gets_outside() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let network = node.network_with_nat();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));

    for (ipv4, service) in [(true, "10.96.0.10"), (false, "fd00:96::10")] {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        let service = SocketAddr::new(service.parse().unwrap(), 80);
        let listener = listen(&b, SocketAddr::new(ip_b, 0));
        node.expose(Protocol::Tcp, service, listener.local_addr().unwrap());

        for target in [service, listener.local_addr().unwrap(), service] {
            let connection = Connection::open(&a, target, &listener).expect("connect");
            connection.exchange().expect("exchange");
            assert_eq!(connection.server.peer_addr().unwrap().ip(), ip_a, "{target}");
        }
        let own = Connection::open(&b, service, &listener).expect("connect to itself");
        own.exchange().expect("exchange with itself");
        let port = SocketAddr::new(node_address(ipv4), 8080);
        node.expose(Protocol::Tcp, port, listener.local_addr().unwrap());
        let outside =
            Connection::open(node.world(), port, &listener).expect("connect from outside");
        outside.exchange().expect("exchange with the outside");
        assert_eq!(outside.server.peer_addr().unwrap().ip(), world(ipv4));
        assert_eq!(source_seen(&a, node.world(), world(ipv4)), node_address(ipv4));
    }
}

#[test]
fn an_outside_that_knows_the_way_reaches_pods_under_their_own_address() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    for ipv4 in FAMILIES {
        let ip = address(&result, ipv4);
        assert_eq!(source_seen(node.world(), &pod, ip), world(ipv4));
        // What answers is not masqueraded, what begins is.
        assert_eq!(source_seen(&pod, node.world(), world(ipv4)), node_address(ipv4));
    }
}

#[test]
fn each_network_has_its_own_setting() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let (nat, plain) = (node.network_with_nat(), other_network(&node, false));
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&nat), b.add(&plain));

    for ipv4 in FAMILIES {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        assert_eq!(source_seen(&a, node.world(), world(ipv4)), node_address(ipv4));
        assert_eq!(datagram_source(&b, node.world(), world(ipv4)), ip_b);
        assert_eq!(source_seen(&a, &b, ip_b), ip_a);
        assert_eq!(source_seen(&b, &a, ip_a), ip_b);
    }
    for (set, elements) in [
        ("pools4-podnet", "10.244.0.0/24"),
        ("outgoing4-podnet", "10.244.0.0/24"),
        ("outgoing6-podnet", "fd00:10:244::/112"),
        ("pools4-other", "10.245.0.0/24"),
        ("pools6-other", "fd00:10:245::/112"),
        ("outgoing4-other", ""),
    ] {
        assert_eq!(elements_of(&node, set), elements, "{set}");
    }
}

#[test]
fn pods_of_another_ipam_plugin_are_not_masqueraded_towards() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let mut delegated = node.network();
    delegated["name"] = json!("delegated");
    delegated["cniVersion"] = json!("1.0.0");
    delegated["ipam"] = json!({
        "type": "host-local",
        "dataDir": node.path("state/host-local"),
        "ranges": [[{"subnet": "10.246.0.0/24"}], [{"subnet": "fd00:10:246::/112"}]],
    });
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let result_a = a.add(&node.network_with_nat());
    let plugins = reference_plugin_directory();
    let add = b.invocation("ADD", &delegated).env("CNI_PATH", plugins.to_str().unwrap());
    let result_b = add.execute().success();

    for ipv4 in FAMILIES {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        // Through the stack, where the rules are: fragments take no short cut.
        assert_eq!(large_datagram_source(&a, &b, ip_b), ip_a);
        assert_eq!(source_seen(&a, &b, ip_b), ip_a);
        assert_eq!(datagram_source(&b, node.world(), world(ipv4)), ip_b);
    }
}

#[test]
fn a_pool_of_two_networks_is_masqueraded_if_one_asks_for_it() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let mut plain = node.network();
    plain["name"] = json!("plain");
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    a.add(&node.network_with_nat());
    b.add(&plain);

    for ipv4 in FAMILIES {
        assert_eq!(source_seen(&b, node.world(), world(ipv4)), node_address(ipv4));
    }
}

#[test]
fn whatever_a_network_is_called_and_however_many_pools_it_has_its_rules_are_written_once() {
    let Some(node) = Node::new() else { return };
    // Neighbours, single addresses, and as many as a configuration may have.
    let mut pools: Vec<Value> =
        (0..250).map(|n| json!({"cidr": format!("10.1.{n}.0/24")})).collect();
    for cidr in ["10.2.0.1/32", "10.2.0.2/32", "10.3.0.0/31", "fd00::/64", "fd00:0:0:1::/64"] {
        pools.push(json!({"cidr": cidr}));
    }
    for pool in &mut pools {
        pool["nat_outgoing"] = json!(true);
    }
    // The longest that leaves room for `/x/e` in the text of an attachment, 247 bytes.
    for name in ["1.a-b_c".to_owned(), "n".repeat(243)] {
        let mut network = node.network();
        network["name"] = json!(name);
        network["ipam"]["pools"] = json!(pools);
        let pod = node.sandbox("x");
        let add = |verb: &str| pod.invocation(verb, &network).env("CNI_IFNAME", "e").execute();

        let first = add("ADD");
        first.success();
        assert!(first.stderr().contains("NAT rules written"), "{}", first.stderr());
        add("DEL").success();
        let second = add("ADD");
        second.success();

        assert!(!second.stderr().contains("NAT rules written"), "{}", second.stderr());
        add("CHECK").success();
        let listing = node.path("listing");
        fs::write(&listing, node.run(&["nft", "list", "ruleset"])).unwrap();
        node.run(&["nft", "-c", "-f", listing.to_str().unwrap()]);
        add("DEL").success();
    }
}

#[test]
fn a_first_add_leaves_nothing_to_write_where_a_network_has_empty_sets() {
    for ipv4 in FAMILIES {
        let Some(node) = Node::new() else { return };
        let mut nat = node.network_with_nat();
        let pools = nat["ipam"]["pools"].as_array_mut().unwrap();
        pools.retain(|pool| pool["cidr"].as_str().unwrap().contains('.') == ipv4);
        for network in [nat, other_network(&node, false)] {
            let (first, second) = (node.sandbox("first"), node.sandbox("second"));
            let result = first.add(&network);

            let check = first.check(&network, &result);
            let add = second.invocation("ADD", &network).execute();

            assert!(check.is_success(), "{}", check.stdout());
            add.success();
            assert!(!add.stderr().contains("NAT rules written"), "{}", add.stderr());
        }
    }
}

#[test]
fn no_pool_is_masqueraded_towards_even_where_its_pods_are_elsewhere() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let pod = node.sandbox("a");
    let result = pod.add(&node.network_with_nat());
    node.sandbox("b").add(&other_network(&node, false));
    // A pod of the other network on another node, which is the world here.
    node.world().enter(|| node::run(&["ip", "addr", "add", "10.245.0.200/32", "dev", "eth0"]));

    let seen = datagram_source(&pod, node.world(), "10.245.0.200".parse().unwrap());

    assert_eq!(seen, address(&result, true));
}

#[test]
fn a_setting_that_changes_counts_from_the_next_add_on() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let (on, off) = (node.network_with_nat(), node.network());
    let (a, b, c) = (node.sandbox("a"), node.sandbox("b"), node.sandbox("c"));
    let result = a.add(&on);
    let before = ruleset(&node);

    b.add(&off);

    for ipv4 in FAMILIES {
        assert_eq!(datagram_source(&a, node.world(), world(ipv4)), address(&result, ipv4));
    }
    assert_eq!(elements_of(&node, "outgoing4-podnet"), "");
    let (code, message) = a.check(&on, &result).error();
    assert_eq!(code, 104, "{message}");
    assert!(message.contains("outgoing4-podnet"), "{message}");

    let mut smaller = on.clone();
    smaller["ipam"]["pools"][1]["nat_outgoing"] = json!(false);
    c.add(&smaller);
    assert_eq!(elements_of(&node, "outgoing4-podnet"), "10.244.0.0/24");
    assert_eq!(elements_of(&node, "outgoing6-podnet"), "");

    c.del(&smaller);
    c.add(&on);
    assert_eq!(ruleset(&node), before);
}

#[test]
fn check_names_what_somebody_took_away_and_the_next_add_puts_it_back() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let network = node.network_with_nat();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    node.sandbox("b").add(&other_network(&node, true));
    let whole = ruleset(&node);

    for (damage, finding) in [
        ("flush ruleset", "table inet margay lacks"),
        ("delete table inet margay", "table inet margay lacks"),
        ("flush table inet margay", "lacks rules of chain postrouting"),
        ("flush chain inet margay postrouting", "lacks rules of chain postrouting"),
        ("flush chain inet margay pools", "lacks the rule of set pools4-podnet"),
        ("flush chain inet margay outgoing", "lacks the rule of set outgoing6-podnet"),
        ("flush set inet margay outgoing4-podnet", "outgoing4-podnet of table inet margay"),
        ("delete element inet margay pools4-podnet { 10.244.0.0/24 }", "exactly 10.244.0.0/24"),
        ("add element inet margay outgoing4-podnet { 10.99.0.0/16 }", "exactly 10.244.0.0/24"),
    ] {
        node.run(&["nft", damage]);
        let (code, message) = pod.check(&network, &result).error();
        assert_eq!(code, 104, "{damage}: {message}");
        assert!(message.contains(finding), "{damage}: {message}");

        let (next, other) = (node.sandbox("next"), node.sandbox("other"));
        next.add(&network);
        other.add(&other_network(&node, true));

        assert_eq!(sorted(&ruleset(&node)), sorted(&whole), "{damage}");
        let check = pod.check(&network, &result);
        assert!(check.is_success(), "{damage}: {}", check.stdout());
        assert_ping(&pod, world(true));
        next.del(&network);
        other.del(&other_network(&node, true));
    }
}

#[test]
fn fifty_adds_leave_the_ruleset_of_one() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    let first = node.sandbox("first");
    first.add(&network);
    let one = ruleset(&node);

    for number in 0..50 {
        let pod = node.sandbox(&format!("pod{number}"));
        pod.add(&network);
        if number % 2 == 0 {
            pod.del(&network);
        }
    }

    assert_eq!(ruleset(&node), one);
}

#[test]
fn first_adds_of_several_networks_at_once_make_one_ruleset() {
    let Some(node) = Node::new() else { return };
    let networks = [node.network_with_nat(), other_network(&node, true)];
    let pods: Vec<Pod<'_>> = (0..8).map(|number| node.sandbox(&format!("pod{number}"))).collect();
    for round in 0..4 {
        let adds: Vec<_> = pods
            .iter()
            .zip(networks.iter().cycle())
            .map(|(pod, network)| pod.invocation("ADD", network).start())
            .collect();
        for add in adds {
            let output = add.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }

        let rules = |chain: &str| {
            let listing = node.run(&["nft", "list", "chain", "inet", TABLE, chain]);
            listing.lines().filter(|line| line.contains('@')).count()
        };
        assert_eq!((rules("pools"), rules("outgoing")), (4, 4), "{round}: {}", ruleset(&node));
        for (pod, network) in pods.iter().zip(networks.iter().cycle()) {
            pod.del(network);
        }
        node.run(&["nft", "flush", "ruleset"]);
    }
}

#[test]
fn without_nft_an_add_and_status_say_what_is_missing() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    let pod = node.sandbox("a");
    let nft = nft();
    hide(&node, &nft, None);

    let (code, message) = pod.invocation("ADD", &network).execute().error();
    assert_eq!(code, 106, "{message}");
    for word in ["ipam.pools[].nat_outgoing", "program nft", "/usr/sbin"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(node.pod_links(), []);
    let (code, message) = pod.invocation("STATUS", &network).execute().error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("nat_outgoing"), "{message}");

    // Who does not ask for it does not miss it.
    pod.invocation("STATUS", &node.network()).execute().success();
    pod.add(&node.network());
}

#[test]
fn nft_is_not_missed_where_the_rules_are_there() {
    let Some(node) = node_in_a_world_without_routes() else { return };
    let network = node.network_with_nat();
    node.sandbox("a").add(&network);
    hide(&node, &nft(), None);
    let pod = node.sandbox("b");

    pod.invocation("STATUS", &network).execute().success();
    pod.add(&network);

    assert_ping(&pod, world(true));
    // The network's wish to end it cannot be followed, which is no reason to keep a pod away.
    let output = node.sandbox("c").invocation("ADD", &node.network()).execute();
    output.success();
    assert!(output.stderr().contains("NAT rules do not follow"), "{}", output.stderr());
}

#[test]
fn what_nft_refuses_is_in_the_error() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    hide(&node, &nft(), Some("#!/bin/sh\ncat > /dev/null\necho not with me >&2\nexit 1\n"));

    let (code, message) = pod.invocation("ADD", &node.network_with_nat()).execute().error();

    assert_eq!(code, 106, "{message}");
    assert!(message.contains("not with me"), "{message}");
    assert_eq!(node.pod_links(), []);
}

/// The commands below a heading of the document.
fn documented_commands(heading: &str) -> Vec<String> {
    let section = NAT_MD.split_once(heading).expect("heading").1;
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect()
}

/// Pods reach the world, and it has no route but to the node's own address.
fn node_in_a_world_without_routes() -> Option<Node> {
    let node = Node::new()?;
    node.world().enter(|| {
        node::run(&["ip", "route", "del", "default"]);
        node::run(&["ip", "-6", "route", "del", "default"]);
    });
    Some(node)
}

fn other_network(node: &Node, nat_outgoing: bool) -> Value {
    let mut network = node.network();
    network["name"] = json!("other");
    network["ipam"]["pools"] = json!([
        {"cidr": "10.245.0.0/24", "nat_outgoing": nat_outgoing},
        {"cidr": "fd00:10:245::/112", "nat_outgoing": nat_outgoing},
    ]);
    network
}

fn world(ipv4: bool) -> IpAddr {
    if ipv4 { WORLD_V4 } else { WORLD_V6 }.parse().unwrap()
}

fn tables(node: &Node) -> String {
    node.run(&["nft", "list", "tables"])
}

fn ruleset(node: &Node) -> String {
    node.run(&["nft", "list", "table", "inet", TABLE])
}

/// The order of sets, and of rules in a chain to which everyone adds, is that of arrival.
fn sorted(ruleset: &str) -> Vec<&str> {
    let mut lines: Vec<_> = ruleset.lines().collect();
    lines.sort_unstable();
    lines
}

fn elements_of(node: &Node, set: &str) -> String {
    let listing = node.run(&["nft", "list", "set", "inet", TABLE, set]);
    let elements = listing.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
    elements.map_or_else(String::new, |(elements, _)| elements.trim().to_owned())
}

fn nft() -> String {
    let path = node::run(&["sh", "-c", "command -v nft"]);
    fs::canonicalize(path.trim()).unwrap().to_str().unwrap().to_owned()
}

/// Puts something else in the place of a program, for this node alone.
fn hide(node: &Node, program: &str, script: Option<&str>) {
    let other = script.map(|script| {
        let path = node.path("in-its-place");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    });
    mount_bind(other.unwrap_or_else(|| "/dev/null".into()), program).unwrap();
}
