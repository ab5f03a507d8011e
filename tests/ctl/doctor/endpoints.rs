//! Endpoints that are not as their ADD left them.

use margay_datastore::{EndpointState, Ipam};
use margay_tests::cni::with_bandwidth;
use margay_tests::ctl::Ctl;
use margay_tests::pod::address;
use margay_tests::{Node, Pod};
use serde_json::json;

use super::{Diagnosis, end, host_veth, node_with_a_pod, set};

/// A classic program that matches everything.
const PASS: &str = "1,6 0 0 4294967295,";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[test]
fn each_thing_that_is_off_with_the_host_end_is_named_and_mended_where_that_is_safe() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, result) = node_with_a_pod(&node, &node.network());
    let (veth, ipv4, ipv6) = (host_veth(&result), address(&result, true), address(&result, false));
    let run = |line: &str| node.run(&line.split_whitespace().collect::<Vec<_>>());
    let expect = |id: &str, words: &str| {
        let diagnosis = Diagnosis::of(&ctl);
        diagnosis.assert_found(id, words);
        diagnosis.assert_only(&[id]);
        assert_eq!(diagnosis.code, 20, "{diagnosis:#?}");
        // Looking changes nothing.
        assert_eq!(Diagnosis::of(&ctl).ids(), diagnosis.ids());
    };
    let expect_mended = |what: &str| {
        let mended = Diagnosis::with(&ctl, &["--fix"]);
        assert!(mended.done().iter().any(|done| done.contains(what)), "{mended:#?}");
        mended.assert_only(&[]);
    };

    run(&format!("ip route del {ipv4}"));
    expect("endpoint-host-route", &format!("host lacks route {ipv4}"));
    expect_mended("made neighbour and route");

    run(&format!("ip neigh del {ipv6} dev {veth}"));
    expect("endpoint-neighbour", &format!("permanent neighbour {ipv6}"));
    expect_mended("made neighbour and route");

    run(&format!("tc filter del dev {veth} ingress prio 100"));
    expect("endpoint-program", "program from_pod is not attached");
    expect_mended("attached the programs");

    node.datapath().pods().remove(ipv4).unwrap();
    expect("endpoint-map-entry", &format!("map entry of {ipv4} is missing"));
    expect_mended(&format!("wrote the map entry of {ipv4}"));

    set(&format!("ipv4/conf/{veth}/proxy_arp"), "1");
    expect("endpoint-sysctl", &format!("net/ipv4/conf/{veth}/proxy_arp is 1, not 0"));
    set(&format!("ipv4/conf/{veth}/proxy_arp"), "0");

    run(&format!("ip link set {veth} mtu 1400"));
    expect("endpoint-host-veth", "has MTU 1400, not 1500");
}

#[test]
fn each_thing_that_is_off_inside_a_pod_is_named() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["container_settings"] = json!({"allow_ip_forwarding": true});
    let (ctl, pod, result) = node_with_a_pod(&node, &network);
    let run = |line: &str| pod.run(&line.split_whitespace().collect::<Vec<_>>());
    let ipv6 = address(&result, false);

    run(&format!("ip addr del {ipv6}/128 dev eth0"));
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-pod-address", &format!("lacks address {ipv6}"));
    diagnosis.assert_only(&["endpoint-pod-address"]);
    run(&format!("ip addr add {ipv6}/128 dev eth0 nodad"));

    run("ip route del default");
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-pod-route", "pod lacks route 0.0.0.0/0");
    diagnosis.assert_only(&["endpoint-pod-route"]);
    run("ip route add default via 169.254.1.1 dev eth0");

    pod.enter(|| set("ipv4/ip_forward", "0"));
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-pod-sysctl", "net/ipv4/ip_forward is 0");
    diagnosis.assert_only(&["endpoint-pod-sysctl"]);
    pod.enter(|| set("ipv4/ip_forward", "1"));
    Diagnosis::of(&ctl).assert_only(&[]);

    run("ip link set eth0 name eth9");
    Diagnosis::of(&ctl).assert_found("endpoint-pod-interface", "\"eth0\" does not exist");
}

#[test]
fn programs_that_are_pinned_no_more_and_filters_in_front_are_named() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (ctl, _pod, result) = node_with_a_pod(&node, &network);
    let veth = host_veth(&result);

    let filter = ["tc", "filter", "add", "dev", veth, "ingress", "prio", "7", "bpf", "bytecode"];
    node.run(&[&filter[..], &[PASS]].concat());
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("filter-in-front", "a bpf filter of somebody else's (priority 7)");
    diagnosis.assert_only(&["filter-in-front"]);
    let filter = format!("tc filter del dev {veth} ingress prio 7");
    node.run(&filter.split_whitespace().collect::<Vec<_>>());

    std::fs::remove_dir_all(node.pins().join("progs")).unwrap();
    let other = node.sandbox("other");
    other.add(&network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-other-program", "runs another from_pod");
    diagnosis.assert_only(&["endpoint-other-program"]);
    Diagnosis::with(&ctl, &["--fix"]).assert_only(&[]);
}

#[test]
fn a_limit_that_limits_nothing_is_named() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), 8_000_000, 0);
    let (ctl, _pod, result) = node_with_a_pod(&node, &network);
    node.run(&["tc", "qdisc", "del", "dev", host_veth(&result), "root"]);

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("endpoint-bandwidth", "no token bucket limits");
    diagnosis.assert_only(&["endpoint-bandwidth"]);
}

#[test]
fn nat_rules_that_somebody_took_away_are_missed_and_put_back() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network_with_nat());
    node.run(&["nft", "delete", "table", "inet", "margay"]);

    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("nat-rules", "network podnet: nftables table inet margay lacks");
    diagnosis.assert_only(&["nat-rules"]);

    Diagnosis::with(&ctl, &["--fix"]).assert_only(&[]);
}

#[test]
fn nat_rules_of_a_network_whose_pools_are_not_known_stay_as_they_are() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network_with_nat();
    let ctl = Ctl::new(&node, &network);
    let create = ["pool", "create", "10.245.0.0/24", "--name", "blue", "--nat-outgoing"];
    let _created = ctl.text(&create);
    network["ipam"]["ipv4_pools"] = json!(["blue"]);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    pods[0].add(&network);
    let is_masqueraded =
        || node.run(&["nft", "list", "table", "inet", "margay"]).contains("10.245.0.0/24");
    assert!(is_masqueraded());
    network["ipam"]["ipv4_pools"] = json!(["blue", "gone"]);
    ctl.install(&network);

    let mended = Diagnosis::with(&ctl, &["--fix"]);

    mended.assert_found("not-looked-at", "the NAT rules of network podnet");
    assert!(!mended.ids().contains(&"nat-rules") && is_masqueraded(), "{mended:#?}");

    // Nor when there is something to mend for another one.
    let mut other = node.network();
    other["name"] = json!("other");
    pods[1].add(&other);
    other["ipam"] = node.network_with_nat()["ipam"].clone();
    ctl.install(&other);
    Diagnosis::of(&ctl).assert_found("nat-rules", "network other");

    let mended = Diagnosis::with(&ctl, &["--fix"]);

    assert!(mended.done().contains(&"the NAT rules of network other are there"), "{mended:#?}");
    let failed = mended.document["failed"].to_string();
    assert!(failed.contains("the NAT rules of network podnet stay as they are"), "{failed}");
    assert!(is_masqueraded(), "{mended:#?}");
}

#[test]
fn an_endpoint_whose_sandbox_is_gone_or_that_stays_in_the_making_is_named() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (ctl, gone, _) = node_with_a_pod(&node, &network);
    let cut_short: Pod<'_> = node.sandbox("b");
    cut_short.add(&network);
    let mut endpoint =
        node.store().endpoint(&cut_short.attachment("podnet", "eth0")).unwrap().unwrap();
    endpoint.state = EndpointState::Pending;
    node.store().put_endpoint(&endpoint).unwrap();
    // An ADD that is at work.
    Diagnosis::of(&ctl).assert_only(&[]);

    endpoint.created_at -= 600;
    node.store().put_endpoint(&endpoint).unwrap();
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-pending", "in the making for 60");
    diagnosis.assert_only(&["endpoint-pending"]);
    cut_short.del(&network);

    end(&node, gone);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-sandbox-gone", "has no sandbox any more");
    assert_eq!(diagnosis.code, 10);

    let mended = Diagnosis::with(&ctl, &["--fix"]);
    mended.assert_only(&[]);
    assert!(mended.done().contains(&"took away what was left of podnet/a/eth0"), "{mended:#?}");
    assert!(node.store().endpoints("podnet").unwrap().is_empty());
}

#[test]
fn an_address_that_is_held_for_nobody_is_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, pod, _) = node_with_a_pod(&node, &node.network());
    let (store, boot_id) = (node.store(), std::fs::read_to_string(BOOT_ID).unwrap());
    let allocator = Ipam::new(&store, "node-under-test", boot_id.trim());
    allocator.release(&pod.attachment("podnet", "eth0")).unwrap();

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("endpoint-address-not-held", "margay-ipam does not hold");
    diagnosis.assert_only(&["endpoint-address-not-held"]);
}
