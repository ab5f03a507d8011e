//! What a node holds of its pods, in every place that could hold something of one.

use std::net::IpAddr;

use margay::naming;
use margay_datastore::{Attachment, Store};
use serde_json::Value;

use crate::node::Node;
use crate::pod::{Pod, address};

/// Asserts that exactly these pods, each with its result, exist in every place, and that CHECK finds
/// nothing wrong with any of them: links, qdiscs, routes, neighbours, filters, sysctls, map entries,
/// endpoints, allocations, locks.
///
/// # Panics
/// When something is left, missing or wrong.
pub fn assert_only(node: &Node, pods: &[(&Pod<'_>, &Value)], context: &str) {
    let attached: Vec<(Attachment, Vec<IpAddr>)> = pods
        .iter()
        .map(|(pod, result)| {
            let ips = vec![address(result, true), address(result, false)];
            (pod.attachment("podnet", "eth0"), ips)
        })
        .collect();
    assert_only_attached(node, &attached, context);
    for (pod, result) in pods {
        let check = pod.check(&node.network(), result);
        assert!(check.is_success(), "{context}: {}: {}", pod.container_id(), check.stdout());
    }
}

/// The same without CHECK, of pods whose attachments and addresses are known.
///
/// # Panics
/// When something is left or missing.
pub fn assert_only_attached(node: &Node, pods: &[(Attachment, Vec<IpAddr>)], context: &str) {
    assert_only_attached_in(node, &node.store(), pods, context);
}

/// The same with the records in a datastore that is not the node's own.
///
/// # Panics
/// When something is left or missing.
pub fn assert_only_attached_in(
    node: &Node,
    store: &Store,
    pods: &[(Attachment, Vec<IpAddr>)],
    context: &str,
) {
    let mut wanted = Vec::new();
    for (attachment, _) in pods {
        wanted.push(naming::host_veth(attachment));
        let endpoint = store.endpoint(attachment).expect("endpoint");
        if endpoint.is_some_and(|endpoint| endpoint.bandwidth.from_pod.is_some()) {
            wanted.push(naming::ifb(attachment));
        }
    }
    wanted.sort();
    let mut links: Vec<String> = node.pod_links().into_iter().map(|link| link.name).collect();
    links.sort();
    assert_eq!(links, wanted, "{context}: links");

    let mut ips: Vec<IpAddr> = pods.iter().flat_map(|(_, ips)| ips.clone()).collect();
    ips.sort();
    assert_eq!(entries(node), ips, "{context}: map entries");

    let mut endpoints: Vec<IpAddr> = Vec::new();
    for endpoint in store.endpoints("podnet").expect("endpoints") {
        endpoints.extend(endpoint.ips.iter().map(|ip| ip.ip()));
    }
    endpoints.sort();
    assert_eq!(endpoints, ips, "{context}: endpoints");
    let ipam = margay_datastore::Ipam::new(store, "node-under-test", "any");
    let holders = ipam.attachments("podnet").expect("attachments");
    assert_eq!(holders.len(), pods.len(), "{context}: allocations");
    let used: u128 = ipam
        .usage(&store.pools().expect("pools"))
        .expect("usage")
        .iter()
        .map(|usage| usage.used)
        .sum();
    assert_eq!(used, ips.len() as u128, "{context}: taken addresses");
    let links = std::fs::read_dir(node.pins().join("links")).map(Iterator::count);
    assert_eq!(links.unwrap_or(0), 0, "{context}: pins of links");
    let locks = std::fs::read_dir(node.path("run/lock")).map(Iterator::count);
    assert_eq!(locks.unwrap_or(0), 0, "{context}: locks");
}

fn entries(node: &Node) -> Vec<IpAddr> {
    match margay_datapath::Pods::open(&node.bpffs_root()).expect("open the maps") {
        Some(maps) => maps.entries().expect("entries").into_keys().collect(),
        None => Vec::new(),
    }
}
