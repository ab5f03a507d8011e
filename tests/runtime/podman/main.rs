//! margay under podman, whose containers have names but no pods behind them, and which parses the
//! network configurations that it finds.

mod host_ports;
mod networks;
mod restarts;

use std::net::IpAddr;

use margay_datastore::Attachment;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, residue};
use margay_tests_runtime::Container;

/// What a container does that others only talk to. It ends when it is told to, at once.
const IDLE: [&str; 3] = ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"];

/// Asserts that these containers, on the default network alone, and nothing of any other, are on the
/// node.
fn assert_only<'podman>(
    node: &Node,
    containers: impl IntoIterator<Item = &'podman Container<'podman>>,
    context: &str,
) {
    let attached: Vec<(Attachment, Vec<IpAddr>)> = containers
        .into_iter()
        .map(|container| (container.default_attachment(), container.ips()))
        .collect();
    residue::assert_only_attached(node, &attached, context);
}

/// Asserts that two containers reach each other over both families.
fn assert_talk(a: &Container<'_>, b: &Container<'_>) {
    let (ips_a, ips_b) = (a.ips(), b.ips());
    assert_eq!((ips_a.len(), ips_b.len()), (2, 2), "{ips_a:?}, {ips_b:?}");
    for (ip_a, ip_b) in ips_a.into_iter().zip(ips_b) {
        assert_ping(a, ip_b);
        assert_tcp(a, b, ip_b);
        assert_tcp(b, a, ip_a);
    }
}
