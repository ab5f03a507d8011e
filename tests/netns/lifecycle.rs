//! A pod's life: ADD, look, talk, CHECK, DEL, nothing left.

use std::net::IpAddr;

use margay::netlink::ROUTE_PROTOCOL;
use margay_abi::{Counter, GATEWAY_V4, GATEWAY_V6, HOST_VETH_MAC};
use margay_tests::node::node_address;
use margay_tests::pod::address;
use margay_tests::traffic::{answers_ping, assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

#[test]
fn an_added_pod_has_its_addresses_routes_and_map_entries() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");

    let result = pod.add(&network);

    let link = only_link(&node);
    assert_eq!(link.mac, HOST_VETH_MAC);
    assert_eq!(link.alias.as_deref(), Some("margay:podnet/a/eth0"));
    assert!(link.up);
    for ipv4 in [true, false] {
        let ip = address(&result, ipv4);
        assert_pod_side(&pod, ip);
        assert_host_side(&node, link.index, ip, &result);
    }
}

#[test]
fn the_result_names_both_interfaces_and_the_gateways() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");

    let result = pod.add(&node.network());

    let link = only_link(&node);
    let pod_link =
        pod.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap());
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(
        result["interfaces"],
        json!([
            {"name": link.name, "mac": mac(link.mac), "mtu": 1500},
            {
                "name": "eth0",
                "mac": mac(pod_link.mac),
                "mtu": 1500,
                "sandbox": pod.netns_path(),
            },
        ])
    );
    let ips = result["ips"].as_array().unwrap();
    assert_eq!(ips.len(), 2);
    for ip in ips {
        let expected = if ip["address"].as_str().unwrap().contains('.') {
            ("169.254.1.1", "/32")
        } else {
            ("fe80::ecee:eeff:feee:eeee", "/128")
        };
        assert_eq!(ip["gateway"], expected.0);
        assert!(ip["address"].as_str().unwrap().ends_with(expected.1), "{ip}");
        assert_eq!(ip["interface"], 1);
    }
}

#[test]
fn two_pods_and_the_host_talk_over_both_families_through_the_fast_path() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));

    for ipv4 in [true, false] {
        let (ip_a, ip_b) = (address(&result_a, ipv4), address(&result_b, ipv4));
        assert_ping(&a, ip_b);
        assert_ping(&b, ip_a);
        assert_tcp(&a, &b, ip_b);
        assert_tcp(&b, &a, ip_a);
        assert_ping(&node, ip_a);
        assert_ping(&a, node_address(ipv4));
        assert_tcp(&node, &a, ip_a);
        assert_tcp(&a, &node, node_address(ipv4));
    }

    assert!(node.packets(Counter::DirectV4) > 10);
    assert!(node.packets(Counter::DirectV6) > 10);
    assert!(node.packets(Counter::ArpAnswered) >= 2);
    assert!(node.packets(Counter::NdpAnswered) >= 2);
    assert_eq!(node.packets(Counter::DropSpoofedSource), 0);
    assert_eq!(node.packets(Counter::DropMalformed), 0);
}

#[test]
fn the_gateway_is_answered_for_by_the_program_and_not_by_proxy_arp() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    pod.add(&node.network());

    assert_ping(&pod, node_address(true));
    assert_ping(&pod, node_address(false));

    let link = only_link(&node);
    let proxy_arp = format!("ipv4/conf/{}/proxy_arp", link.name);
    assert_eq!(margay::sysctl::get(&proxy_arp).unwrap(), "0");
    for gateway in [IpAddr::from(GATEWAY_V4), IpAddr::from(GATEWAY_V6)] {
        let neighbour = pod.netlink(async |netlink| {
            let eth0 = netlink.link_by_name("eth0").await.unwrap().unwrap();
            netlink.neighbour(eth0.index, gateway).await.unwrap().unwrap()
        });
        assert_eq!(neighbour.mac, Some(HOST_VETH_MAC), "{gateway}");
    }
}

#[test]
fn del_leaves_nothing_and_can_be_repeated() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    pod.del(&network);
    assert_nothing_left(&node, &result);

    pod.del(&network);
    assert_nothing_left(&node, &result);
}

#[test]
fn del_does_without_netns_and_prev_result() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    let without_netns = pod.invocation("DEL", &network).without_env("CNI_NETNS");
    without_netns.execute().success();

    assert_nothing_left(&node, &result);
}

#[test]
fn del_after_the_sandbox_is_gone_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let del = pod.invocation("DEL", &network);
    pod.destroy();

    del.execute().success();

    assert_nothing_left(&node, &result);
}

#[test]
fn del_of_an_unknown_container_succeeds() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("never-added");

    pod.del(&node.network());

    assert_eq!(node.pod_links(), []);
}

#[test]
fn an_attachment_of_the_longest_name_is_made_and_found_again() {
    let Some(node) = Node::new() else { return };
    let pod = node.sandbox("a");
    let mut network = node.network();
    let longest = 247 - "/a/eth0".len();
    network["name"] = json!("n".repeat(longest));

    let result = pod.add(&network);

    assert!(pod.check(&network, &result).is_success());
    pod.del(&network);
    assert_eq!(node.pod_links(), []);
    network["name"] = json!("n".repeat(longest + 1));
    let (code, message) = pod.invocation("ADD", &network).execute().error();
    assert_eq!(code, 4, "{message}");
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_intact() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    let (code, message) = pod.invocation("ADD", &network).execute().error();

    assert!(code >= 100, "{code}: {message}");
    assert!(message.contains("podnet/a/eth0"), "{message}");
    assert_ping(&node, address(&result, true));
    assert!(pod.check(&network, &result).is_success());
}

#[test]
fn a_recreated_sandbox_works_while_the_old_one_still_exists_and_survives_its_del() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0";
    let (old, new) = (node.sandbox("old"), node.sandbox("new"));
    let add =
        |pod: &Pod<'_>| pod.invocation("ADD", &network).env("CNI_ARGS", args).execute().success();
    let old_result = add(&old);

    let new_result = add(&new);
    assert_ne!(address(&old_result, true), address(&new_result, true));
    old.invocation("DEL", &network).env("CNI_ARGS", args).execute().success();

    assert_ping(&node, address(&new_result, true));
    assert_ping(&new, node_address(false));
    assert!(new.check(&network, &new_result).is_success());
    assert!(!answers_ping(&node, address(&old_result, true)));
}

#[test]
fn a_pod_with_two_interfaces_keeps_the_first_ones_default_route() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let mut second = node.network();
    second["name"] = json!("second");
    second["ipam"]["pools"] = json!([{"cidr": "10.245.0.0/24"}, {"cidr": "fd00:10:245::/112"}]);
    let (pod, other) = (node.sandbox("a"), node.sandbox("b"));
    pod.add(&network);
    other.add(&network);
    let other_second =
        other.invocation("ADD", &second).env("CNI_IFNAME", "net1").execute().success();

    let result = pod.invocation("ADD", &second).env("CNI_IFNAME", "net1").execute().success();

    let default = pod.netlink(async |netlink| {
        netlink.route_to("192.0.2.1".parse().unwrap()).await.unwrap().unwrap()
    });
    let eth0 = pod.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap());
    assert_eq!(default.ifindex, Some(eth0.index));
    assert_eq!(result["interfaces"][1]["name"], "net1");
    assert_ping(&pod, address(&other_second, true));
    assert_ping(&pod, address(&other_second, false));
    assert!(pod.invocation("DEL", &second).env("CNI_IFNAME", "net1").execute().is_success());
    assert_ping(&pod, node_address(true));
}

#[test]
fn a_pod_can_have_several_interfaces_on_one_network() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let execute = |verb: &str, ifname: &str, config: &Value| {
        pod.invocation(verb, config).env("CNI_IFNAME", ifname).execute()
    };
    let results =
        ["eth0", "net1", "net2"].map(|ifname| (ifname, execute("ADD", ifname, &network).success()));

    for (ifname, result) in &results {
        let mut config = network.clone();
        config["prevResult"] = result.clone();
        let output = execute("CHECK", ifname, &config);
        assert!(output.is_success(), "{ifname}: {}", output.stdout());
    }
    execute("DEL", "net1", &network).success();

    let to_pool = pod.netlink(async |netlink| {
        let net2 = netlink.link_by_name("net2").await.unwrap().unwrap();
        let route = netlink.route_to("10.244.0.200".parse().unwrap()).await.unwrap().unwrap();
        (route.ifindex, Some(net2.index))
    });
    assert_eq!(to_pool.0, to_pool.1, "the pool is reached over what is left");
    assert_ping(&pod, node_address(true));
}

#[test]
fn the_default_route_can_be_that_of_a_second_interface() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    let pod = node.sandbox("a");
    network["default_route"] = json!(false);
    pod.add(&network);

    network["default_route"] = json!(true);
    let add = pod.invocation("ADD", &network).env("CNI_IFNAME", "net1");
    let result = add.execute().success();

    assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
    for ipv4 in [true, false] {
        assert_ping(&pod, node_address(ipv4));
        assert_ping(&node, address(&result, ipv4));
    }
}

#[test]
fn one_family_alone_works() {
    let Some(node) = Node::new() else { return };
    for (ipv4, pool) in [(true, "10.246.0.0/24"), (false, "fd00:10:246::/112")] {
        let mut network = node.network();
        network["name"] = json!(format!("only{ipv4}"));
        network["ipam"]["pools"] = json!([{"cidr": pool}]);
        let (a, b) = (node.sandbox(&format!("a{ipv4}")), node.sandbox(&format!("b{ipv4}")));
        let (result_a, result_b) = (a.add(&network), b.add(&network));

        assert_eq!(result_a["ips"].as_array().unwrap().len(), 1);
        assert_ping(&a, address(&result_b, ipv4));
        assert_tcp(&a, &b, address(&result_b, ipv4));
        assert_ping(&a, node_address(ipv4));
        a.del(&network);
        b.del(&network);
        assert_nothing_left(&node, &result_a);
    }
}

#[test]
fn the_mtu_is_that_of_the_default_route_unless_configured() {
    let Some(node) = Node::new() else { return };
    node.run(&["ip", "link", "set", "uplink0", "mtu", "1400"]);
    let mut network = node.network();
    let mtu_of = |pod: &Pod<'_>| {
        pod.netlink(async |netlink| netlink.link_by_name("eth0").await.unwrap().unwrap().mtu)
    };

    network["log_level"] = json!("info");
    let found = node.sandbox("found");
    let output = found.invocation("ADD", &network).execute();
    assert_eq!(output.success()["interfaces"][1]["mtu"], 1400);
    assert_eq!(mtu_of(&found), 1400);
    assert!(output.stderr().contains("uplink0"), "{}", output.stderr());

    network["mtu"] = json!(1300);
    let configured = node.sandbox("configured");
    configured.add(&network);
    assert_eq!(mtu_of(&configured), 1300);
}

#[test]
fn a_pod_of_ipv4_alone_can_have_an_mtu_below_that_of_ipv6() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/24"}]);
    network["mtu"] = json!(1000);
    let pod = node.sandbox("a");

    let result = pod.add(&network);

    assert_ping(&pod, node_address(true));
    let output = pod.check(&network, &result);
    assert!(output.is_success(), "{}", output.stdout());
}

#[test]
fn an_mtu_too_small_for_ipv6_is_an_error_that_says_where_it_is_from() {
    let Some(node) = Node::new() else { return };
    node.run(&["ip", "link", "set", "uplink0", "mtu", "1200"]);
    let pod = node.sandbox("a");

    let (code, message) = pod.invocation("ADD", &node.network()).execute().error();

    assert_eq!(code, 7, "{message}");
    assert!(message.contains("MTU 1200 (interface uplink0"), "{message}");
    assert_eq!(node.pod_links(), []);
}

#[test]
fn the_mtu_is_found_behind_a_default_route_of_several_paths() {
    let Some(node) = Node::new() else { return };
    node.run(&["ip", "link", "set", "uplink0", "mtu", "1400"]);
    node.run(&["ip", "-4", "route", "del", "default"]);
    node.run(&["ip", "-6", "route", "del", "default"]);
    for (family, path, other) in
        [("-4", "192.168.77.2", "192.168.77.3"), ("-6", "fd77::2", "fd77::3")]
    {
        let paths = ["nexthop", "via", path, "nexthop", "via", other];
        node.run(&[&["ip", family, "route", "add", "default"][..], &paths].concat());
        let pod = node.sandbox(&format!("pod{family}"));

        let result = pod.add(&node.network());

        assert_eq!(result["interfaces"][1]["mtu"], 1400, "{family}");
        node.run(&["ip", family, "route", "del", "default"]);
    }
}

#[test]
fn requested_addresses_and_mac_are_given() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["capabilities"] = json!({"ips": true, "mac": true});
    network["runtimeConfig"] =
        json!({"ips": ["10.244.0.77", "fd00:10:244::77"], "mac": "02:11:22:33:44:55"});
    let pod = node.sandbox("a");

    let result = pod.add(&network);

    assert_eq!(address(&result, true).to_string(), "10.244.0.77");
    assert_eq!(address(&result, false).to_string(), "fd00:10:244::77");
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55");
    assert_ping(&node, address(&result, true));
    assert_ping(&pod, node_address(false));
}

fn only_link(node: &Node) -> margay::netlink::LinkInfo {
    let mut links = node.pod_links();
    assert_eq!(links.len(), 1, "{links:?}");
    links.remove(0)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn assert_pod_side(pod: &Pod<'_>, ip: IpAddr) {
    let (addresses, default) = pod.netlink(async |netlink| {
        let eth0 = netlink.link_by_name("eth0").await.unwrap().unwrap();
        assert!(eth0.up);
        let elsewhere = if ip.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
        let default = netlink.route_to(elsewhere.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(default.ifindex, Some(eth0.index));
        (netlink.addresses(eth0.index).await.unwrap(), default)
    });
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    assert!(
        addresses.iter().any(|info| info.address == ip && info.prefix_length == prefix),
        "{addresses:?}"
    );
    let gateway = if ip.is_ipv4() { IpAddr::from(GATEWAY_V4) } else { IpAddr::from(GATEWAY_V6) };
    assert_eq!(default.gateway, Some(gateway));
}

fn assert_host_side(node: &Node, ifindex: u32, ip: IpAddr, result: &Value) {
    let (route, neighbour) = node.netlink(async |netlink| {
        let route = netlink.route_to(ip).await.unwrap().unwrap();
        (route, netlink.neighbour(ifindex, ip).await.unwrap().unwrap())
    });
    assert_eq!(route.ifindex, Some(ifindex));
    assert_eq!(route.protocol, ROUTE_PROTOCOL);
    assert!(neighbour.permanent);
    assert_eq!(neighbour.mac.map(mac).as_deref(), result["interfaces"][1]["mac"].as_str());
    let entry = node.datapath().pods().get(ip).unwrap().expect("a map entry");
    assert_eq!(entry.ifindex, ifindex);
    assert_eq!(mac(entry.pod_mac), result["interfaces"][1]["mac"].as_str().unwrap());
    assert_eq!(entry.mtu, 1500);
}

fn assert_nothing_left(node: &Node, result: &Value) {
    assert_eq!(node.pod_links(), []);
    let datapath = node.datapath();
    assert_eq!(datapath.pods().entries().unwrap().len(), 0, "map entries");
    for ip in result["ips"].as_array().unwrap() {
        let ip: IpAddr =
            ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        let route = node.netlink(async |netlink| netlink.route_to(ip).await.unwrap());
        assert!(route.is_none_or(|route| route.prefix_length == 0), "a route to {ip}");
    }
    assert_eq!(std::fs::read_dir(node.path("run/lock")).unwrap().count(), 0, "lock files");
    let store = node.store();
    assert_eq!(store.endpoints("podnet").unwrap(), []);
}
