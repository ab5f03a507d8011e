//! What belongs to nobody.

use std::process::Command;
use std::time::Instant;

use margay::lock::Lock;
use margay_abi::PodInfo;
use margay_datastore::{AssignRequest, Attachment, Ipam};
use margay_tests::Node;
use margay_tests::cni::with_bandwidth;
use margay_tests::traffic::PATIENCE;

use super::{Diagnosis, end, host_veth, node_with_a_pod};

#[test]
fn an_interface_of_which_nothing_is_recorded_is_named_and_left() {
    let Some(node) = Node::new() else { return };
    let (ctl, pod, result) = node_with_a_pod(&node, &node.network());
    let attachment = pod.attachment("podnet", "eth0");
    node.store().delete_endpoint(&attachment, "node-under-test").unwrap();
    Ipam::new(&node.store(), "node-under-test", "any").release(&attachment).unwrap();
    let veth = host_veth(&result);

    Diagnosis::of(&ctl).assert_found("leftover-link", veth);

    // A verb may be about to record it, or to take it away.
    let lock = Lock::take(&node.path("run"), veth).unwrap();
    Diagnosis::of(&ctl).assert_only(&[]);
    drop(lock);

    // Somebody may still be talking.
    Diagnosis::with(&ctl, &["--fix"]).assert_found("leftover-link", veth);
}

#[test]
fn an_ifb_a_map_entry_and_an_address_of_nobody_are_named_and_taken_away() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    let gone = node.sandbox("gone");
    gone.add(&with_bandwidth(&network, 0, 8_000_000));
    let attachment = gone.attachment("podnet", "eth0");
    end(&node, gone);
    node.store().delete_endpoint(&attachment, "node-under-test").unwrap();
    let store = node.store();
    let allocator = Ipam::new(&store, "node-under-test", "any");
    allocator.release(&attachment).unwrap();
    let held = Attachment::new("podnet", "held", "eth0").unwrap();
    allocator
        .assign(&AssignRequest {
            attachment: held,
            pod: None,
            netns: Some("/nowhere/netns".to_owned()),
            pools: store.pools().unwrap(),
            ipv4: true,
            ipv6: false,
            requested: vec![],
            strict_affinity: false,
        })
        .unwrap();
    let datapath = node.datapath();
    let known = *datapath.pods().entries().unwrap().values().next().unwrap();
    let orphan = PodInfo { ifindex: 0x00ff_ffff, ..known };
    datapath.pods().insert("10.99.0.1".parse().unwrap(), &orphan).unwrap();

    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("leftover-ifb", "podnet/gone/eth0");
    diagnosis.assert_found("leftover-address", "podnet/held/eth0");
    diagnosis.assert_found("leftover-map-entry", "10.99.0.1 leads to interface 16777215");
    diagnosis.assert_only(&["leftover-ifb", "leftover-address", "leftover-map-entry"]);

    Diagnosis::with(&ctl, &["--fix"]).assert_only(&[]);
}

#[test]
fn a_route_of_margays_that_leads_to_nobody_is_named() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    node.run(&["ip", "route", "add", "10.244.0.99/32", "dev", "uplink0", "proto", "77"]);

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("leftover-route", "route 10.244.0.99 over uplink0");
    diagnosis.assert_only(&["leftover-route"]);
}

#[test]
fn what_is_gone_at_a_second_look_is_no_leftover() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    // There is always such a route, and none stays.
    let come_and_go = "for i in $(seq 250); do for j in $(seq 250); do \
         ip route add 10.99.$i.$j/32 dev uplink0 proto 77; ip route del $last; last=10.99.$i.$j/32; \
         done; done";
    node.run(&["ip", "route", "add", "10.99.0.1/32", "dev", "uplink0", "proto", "77"]);
    let script = format!("last=10.99.0.1/32; {come_and_go}");
    let mut others = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while node.run(&["ip", "route", "show", "10.99.0.1"]).contains("10.99.0.1") {
        assert!(Instant::now() < deadline, "no route comes or goes");
    }

    let diagnosis = Diagnosis::of(&ctl);

    others.kill().unwrap();
    others.wait().unwrap();
    diagnosis.assert_only(&[]);
}
