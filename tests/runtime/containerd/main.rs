//! margay under containerd, driven over the Container Runtime Interface as kubelet drives it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host_ports;
mod lifecycle;
mod restarts;

use std::net::IpAddr;
use std::sync::Mutex;
use std::thread;

use margay_datastore::Attachment;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, residue};
use margay_tests_runtime::Pod;

/// As many pods at once as work is given for, at most four, in the order of the items.
fn four_at_a_time<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(items.into_iter().enumerate());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((index, item)) = next else { return };
                    let result = work(item);
                    results.lock().unwrap().push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Asserts that these pods, and nothing of any other, are on the node.
fn assert_only<'pod>(node: &Node, pods: impl IntoIterator<Item = &'pod Pod<'pod>>, context: &str) {
    let attached: Vec<(Attachment, Vec<IpAddr>)> =
        pods.into_iter().map(|pod| (pod.attachment(), pod.ips().to_vec())).collect();
    residue::assert_only_attached(node, &attached, context);
}

/// Asserts that two pods reach each other over both families.
fn assert_talk(a: &Pod<'_>, b: &Pod<'_>) {
    for ipv4 in [true, false] {
        assert_ping(a, b.ip(ipv4));
        assert_tcp(a, b, b.ip(ipv4));
        assert_tcp(b, a, a.ip(ipv4));
    }
}
