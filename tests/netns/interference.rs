//! Settings and programs of others on the node: what they may do to pods, and what pods may do to
//! them.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use margay_abi::Counter;
use margay_tests::node::{WORLD_V4, WORLD_V6, node_address};
use margay_tests::packet::{Ipv6, ethernet, icmpv6_checksum};
use margay_tests::pod::address;
use margay_tests::traffic::{PATIENCE, assert_ping, assert_tcp};
use margay_tests::{Invocation, Node, Pod};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

#[test]
fn reverse_path_filters_of_either_kind_are_in_no_pods_way() {
    for mode in ["1", "2"] {
        // A node of its own for each: a thread can be one only once.
        std::thread::spawn(move || {
            let Some(node) = Node::new() else { return };
            for interface in ["all", "default", "uplink0"] {
                set(&format!("ipv4/conf/{interface}/rp_filter"), mode);
            }
            assert_pods_reach_everything(&node);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_host_that_does_not_forward_is_made_to() {
    let Some(node) = Node::new() else { return };
    set("ipv4/conf/all/forwarding", "0");
    set("ipv6/conf/all/forwarding", "0");

    assert_pods_reach_everything(&node);
}

#[test]
fn check_notices_that_forwarding_was_switched_off() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    for family in ["ipv4", "ipv6"] {
        set(&format!("{family}/conf/all/forwarding"), "0");
        let (code, message) = pod.check(&network, &result).error();
        assert_eq!(code, 104, "{message}");
        assert!(message.contains(&format!("{family}/conf/")), "{message}");
        assert!(message.contains("forwarding is 0"), "{message}");

        // The next ADD mends it for all.
        let other = node.sandbox("other");
        other.add(&network);
        let check = pod.check(&network, &result);
        assert!(check.is_success(), "{}", check.stdout());
        assert_ping(&pod, WORLD_V4.parse().unwrap());
        assert_ping(&pod, WORLD_V6.parse().unwrap());
        other.del(&network);
    }
}

#[test]
fn the_routes_that_a_router_advertises_to_the_host_outlive_its_first_pod() {
    let Some(node) = Node::new() else { return };
    let router = Router::new(&node);
    router.advertise_until("the host takes the advertised route", &node);
    let pod = node.sandbox("a");

    pod.add(&node.network());

    assert!(has_advertised_route(&node), "the host lost its default route");
    node.run(&["ip", "-6", "route", "flush", "proto", "ra"]);
    router.advertise_until("the host goes on taking advertised routes", &node);
    assert_ping(&pod, node_address(false));
}

#[test]
fn pods_take_no_routes_from_whoever_advertises_them() {
    let Some(node) = Node::new() else { return };
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let network = node.network();
    let result = a.add(&network);
    b.add(&network);
    a.send_frame("eth0", &advertisement(mac(&result)));

    assert_ping(&b, address(&result, false));

    for place in [node.run(&["ip", "-6", "route"]), b.run(&["ip", "-6", "route"])] {
        assert!(!place.contains("proto ra"), "{place}");
    }
}

#[test]
fn pods_have_ipv4_where_the_hosts_ipv6_is_off() {
    let Some(node) = Node::new() else { return };
    set("ipv6/conf/all/disable_ipv6", "1");
    set("ipv6/conf/default/disable_ipv6", "1");
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/24"}]);

    assert_ipv4_pods_work(&node, &network);
}

#[test]
fn pods_have_ipv4_where_the_kernel_has_no_ipv6() {
    let Some(node) = Node::new() else { return };
    mount("none", "/proc/sys/net/ipv6", "tmpfs", MountFlags::empty(), None).unwrap();
    let mut network = node.network();
    network["ipam"]["pools"] = json!([{"cidr": "10.244.0.0/24"}]);

    assert_ipv4_pods_work(&node, &network);
}

#[test]
fn pods_have_both_families_where_ipv6_is_off_on_the_hosts_own_interfaces() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    set("ipv6/conf/all/disable_ipv6", "1");
    set("ipv6/conf/default/disable_ipv6", "1");
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));

    for ipv4 in [true, false] {
        assert_ping(&a, address(&result_b, ipv4));
        assert_tcp(&b, &a, address(&result_a, ipv4));
    }
    let check = a.check(&network, &result_a);
    assert!(check.is_success(), "{}", check.stdout());
}

#[test]
fn filters_of_others_at_the_same_hook_stay_and_keep_nothing_from_margays() {
    // Classic BPF that says "no match" of every packet, as an observer's filter does.
    const OBSERVER: &str = "1,6 0 0 0,";
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));
    let veth = veth(&result_a);
    let filter =
        |verb: &str, hook: &str| ["tc", "filter", verb, "dev", &veth, hook].map(str::to_owned);
    let tc = |line: &[String], rest: &[&str]| {
        let line: Vec<&str> = line.iter().map(String::as_str).chain(rest.iter().copied()).collect();
        node.run(&line)
    };
    for (hook, preference) in [("ingress", "1"), ("ingress", "50000"), ("egress", "1")] {
        let rest = ["pref", preference, "protocol", "all", "bpf", "bytecode", OBSERVER];
        tc(&filter("add", hook), &rest);
    }

    for ipv4 in [true, false] {
        assert_ping(&a, address(&result_b, ipv4));
        assert_ping(&b, address(&result_a, ipv4));
        assert_ping(&a, node_address(ipv4));
    }

    assert!(node.packets(Counter::DirectV4) > 0);
    let check = a.check(&network, &result_a);
    assert!(check.is_success(), "{}", check.stdout());
    let shown = tc(&filter("show", "ingress"), &[]);
    for preference in ["pref 1 ", "pref 100 ", "pref 50000 "] {
        assert!(shown.contains(preference), "{shown}");
    }
    a.del(&network);
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn a_clsact_qdisc_that_somebody_deletes_is_noticed_by_check_and_mended_by_del_and_add() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    node.run(&["tc", "qdisc", "del", "dev", &veth(&result), "clsact"]);

    let (code, message) = pod.check(&network, &result).error();
    assert_eq!(code, 104, "{message}");
    for program in ["from_pod", "to_pod"] {
        assert!(message.contains(&format!("program {program} is not attached")), "{message}");
    }
    assert!(message.contains("DEL and ADD"), "says how to mend it: {message}");

    pod.del(&network);
    let again = pod.add(&network);
    let check = pod.check(&network, &again);
    assert!(check.is_success(), "{}", check.stdout());
    assert_ping(&pod, node_address(true));
}

#[test]
fn a_bpf_file_system_that_is_not_mounted_is_mounted() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    // In the mount namespace of this test's node alone.
    hide_system_bpffs();
    network["bpffs_root"] = json!("/sys/fs/bpf/margay-under-test");
    let pod = node.sandbox("a");
    Invocation::new("margay", "STATUS", &network).execute().success();

    let result = pod.add(&network);

    let check = pod.check(&network, &result);
    assert!(check.is_success(), "{}", check.stdout());
    assert_ping(&pod, node_address(true));
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let mounted = mounts.lines().filter(|line| line.contains(" /sys/fs/bpf bpf ")).count();
    assert_eq!(mounted, 1, "{mounts}");
    pod.del(&network);
    let _ = unmount("/sys/fs/bpf", UnmountFlags::DETACH);
}

#[test]
fn a_bpf_file_system_that_cannot_be_mounted_is_an_error_that_says_why() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    mount("none", "/sys/fs", "tmpfs", MountFlags::empty(), None).unwrap();
    network["bpffs_root"] = json!("/sys/fs/bpf/margay-under-test");
    let pod = node.sandbox("a");

    let (code, message) = Invocation::new("margay", "STATUS", &network).execute().error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("/sys/fs/bpf does not exist"), "{message}");
    let (code, message) = pod.invocation("ADD", &network).execute().error();
    assert_eq!(code, 102, "{message}");
    assert!(message.contains("/sys/fs/bpf does not exist"), "{message}");
    assert_eq!(node.pod_links(), []);
    pod.del(&network);
    unmount("/sys/fs", UnmountFlags::DETACH).unwrap();
}

#[test]
fn mac_addresses_are_such_that_udev_leaves_them_alone_and_check_notices_who_does_not() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let result = pod.add(&network);
    let veth = veth(&result);
    // What systemd-udevd goes by: NET_ADDR_SET, not NET_ADDR_RANDOM.
    let sysfs = node.path("sys");
    fs::create_dir(&sysfs).unwrap();
    mount("sysfs", &sysfs, "sysfs", MountFlags::RDONLY, None).unwrap();
    let kind = fs::read_to_string(sysfs.join("class/net").join(&veth).join("addr_assign_type"));
    unmount(&sysfs, UnmountFlags::DETACH).unwrap();
    assert_eq!(kind.unwrap().trim(), "3");

    node.run(&["ip", "link", "set", &veth, "address", "02:00:00:00:00:77"]);

    let (code, message) = pod.check(&network, &result).error();
    assert_eq!(code, 104, "{message}");
    assert!(message.contains("02:00:00:00:00:77"), "{message}");
    pod.del(&network);
    let again = pod.add(&network);
    assert_ping(&pod, node_address(false));
    assert!(pod.check(&network, &again).is_success());
}

fn assert_pods_reach_everything(node: &Node) {
    let network = node.network();
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(&network), b.add(&network));
    for (ipv4, world) in [(true, WORLD_V4), (false, WORLD_V6)] {
        let world: IpAddr = world.parse().unwrap();
        assert_tcp(&a, &b, address(&result_b, ipv4));
        assert_tcp(&b, &a, address(&result_a, ipv4));
        assert_tcp(node, &a, address(&result_a, ipv4));
        assert_tcp(&a, node, node_address(ipv4));
        assert_tcp(&a, node.world(), world);
        assert_tcp(node.world(), &a, address(&result_a, ipv4));
    }
    assert!(node.packets(Counter::DirectV4) > 0);
    assert!(node.packets(Counter::DirectV6) > 0);
    let check = a.check(&network, &result_a);
    assert!(check.is_success(), "{}", check.stdout());
}

fn assert_ipv4_pods_work(node: &Node, network: &Value) {
    let (a, b) = (node.sandbox("a"), node.sandbox("b"));
    let (result_a, result_b) = (a.add(network), b.add(network));
    assert_tcp(&a, &b, address(&result_b, true));
    assert_tcp(&a, node.world(), WORLD_V4.parse().unwrap());
    assert_tcp(node, &a, address(&result_a, true));
    let check = a.check(network, &result_a);
    assert!(check.is_success(), "{}", check.stdout());
    Invocation::new("margay", "STATUS", network).execute().success();
    a.del(network);
    b.del(network);
    assert_eq!(node.pod_links(), []);
}

fn set(key: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

fn veth(result: &Value) -> String {
    result["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

fn mac(result: &Value) -> [u8; 6] {
    let text = result["interfaces"][1]["mac"].as_str().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A router on a link of its own to the node.
struct Router<'node> {
    sandbox: Pod<'node>,
}

impl<'node> Router<'node> {
    fn new(node: &'node Node) -> Self {
        let sandbox = node.sandbox("router");
        let netns = sandbox.netns_path().to_str().unwrap();
        let ip = |line: &str| node.run(&line.split_whitespace().collect::<Vec<_>>());
        ip("ip link add lan0 type veth peer name eth0");
        ip(&format!("ip link set eth0 netns {netns}"));
        set("ipv6/conf/lan0/accept_dad", "0");
        ip("ip link set lan0 up");
        sandbox.run(&["ip", "link", "set", "eth0", "up"]);
        Self { sandbox }
    }

    /// Again and again, as a router does: the host may not be listening yet.
    fn advertise_until(&self, what: &str, node: &Node) {
        wait_until(what, || {
            self.sandbox.send_frame("eth0", &advertisement([2, 0, 0, 0, 0, 1]));
            has_advertised_route(node)
        });
    }
}

fn has_advertised_route(node: &Node) -> bool {
    node.run(&["ip", "-6", "route", "show", "default"]).contains("proto ra")
}

/// A router advertisement to everybody: a default route for half an hour.
fn advertisement(src_mac: [u8; 6]) -> Vec<u8> {
    let src = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
    let dst = "ff02::1".parse::<Ipv6Addr>().unwrap().octets();
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // Source link-layer address.
    message.extend([1, 1]);
    message.extend(src_mac);
    let sum = icmpv6_checksum(src, dst, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = Ipv6 { hop_limit: 255, ..Ipv6::new(src, dst, 58) };
    ethernet([0x33, 0x33, 0, 0, 0, 1], src_mac, 0x86dd, &header.packet(&message))
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// As on a machine where nothing has mounted one.
fn hide_system_bpffs() {
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).unwrap();
}
