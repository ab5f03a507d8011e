//! What becomes of containers that are stopped and started again, by podman or by a reboot.

use margay_tests::Node;
use margay_tests_runtime::Podman;

use crate::{IDLE, assert_only, assert_talk};

#[test]
fn a_container_is_on_the_network_again_after_a_restart() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let [a, b] = ["a", "b"].map(|name| podman.start(name, &[], &IDLE));

    podman.run(&["restart", "a"]);
    assert_only(&node, [&a, &b], "restarted");
    assert_talk(&a, &b);

    podman.run(&["stop", "b"]);
    assert_only(&node, [&a], "stopped");
    podman.run(&["start", "b"]);
    assert_only(&node, [&a, &b], "started");
    assert_talk(&a, &b);

    podman.run(&["rm", "--all", "--force"]);
    assert_only(&node, [], "removed");
}

#[test]
fn a_reload_of_the_network_keeps_addresses_and_repairs_what_is_gone() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let [a, b] = ["a", "b"].map(|name| podman.start(name, &[], &IDLE));
    let ips = a.ips();
    let veth = margay::naming::host_veth(&a.default_attachment());
    node.run(&["tc", "qdisc", "del", "dev", &veth, "clsact"]);

    podman.run(&["network", "reload", "a"]);

    assert_eq!(a.ips(), ips);
    assert_only(&node, [&a, &b], "reloaded");
    assert_talk(&a, &b);
}

#[test]
fn containers_come_up_again_after_a_reboot() {
    let Some(node) = Node::new() else { return };
    let Some(podman) = Podman::install(&node) else { return };
    let [a, b] = ["a", "b"].map(|name| podman.start(name, &[], &IDLE));
    assert_talk(&a, &b);

    podman.reboot();

    podman.run(&["start", "a", "b"]);
    assert_only(&node, [&a, &b], "after the reboot");
    assert_talk(&a, &b);
    podman.run(&["rm", "--all", "--force"]);
    assert_only(&node, [], "removed");
}
