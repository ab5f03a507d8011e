//! A request that the kernel or the datastore refuses, whichever it is, is an error that says so,
//! and leaves nothing that a DEL does not remove.
//!
//! Nothing here knows the requests of a verb: the first is refused, then the second, and so on until
//! there are no more.

use std::fs;

use margay_tests::cni::with_bandwidth;
use margay_tests::residue::assert_only;
use margay_tests::{CniOutput, Node, Pod};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

const EPERM: u32 = 1;
const EIO: u32 = 5;
const E2BIG: u32 = 7;
const ENOMEM: u32 = 12;
const EACCES: u32 = 13;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const ENOSPC: u32 = 28;
const EROFS: u32 = 30;

/// CNI's code for input and output, then margay's own for dataplane, netlink and NAT.
const CODES: [u64; 4] = [5, 102, 103, 106];

#[test]
fn an_add_whose_netlink_requests_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    refuse_each_request_of_an_add(
        &node,
        &node.network(),
        "netlink",
        &[EEXIST, ENOSPC, EBUSY, ENOMEM, EPERM],
    );
}

#[test]
fn an_add_whose_requests_for_bandwidth_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    for dataplane in ["ebpf", "linux"] {
        let mut network = with_bandwidth(&node.network(), 1 << 20, 1 << 20);
        network["dataplane"] = json!(dataplane);
        refuse_each_request_of_an_add(&node, &network, "netlink", &[EEXIST, ENOMEM, EPERM]);
    }
}

#[test]
fn a_del_that_is_refused_to_take_a_limit_away_says_so_and_the_next_one_ends_it() {
    let Some(node) = Node::new() else { return };
    let network = with_bandwidth(&node.network(), 1 << 20, 1 << 20);
    refuse_each_request_of_a_del(&node, &network, "netlink", EBUSY);
}

#[test]
fn an_add_whose_map_writes_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    refuse_each_request_of_an_add(&node, &node.network(), "entry", &[E2BIG, EBUSY, ENOMEM, EPERM]);
}

#[test]
fn an_add_whose_writes_to_the_datastore_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    refuse_each_request_of_an_add(&node, &node.network(), "store", &[ENOSPC, EIO, EROFS]);
}

#[test]
fn an_add_whose_sysctls_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    refuse_each_request_of_an_add(&node, &node.network(), "sysctl", &[EPERM, EROFS]);
}

#[test]
fn an_add_whose_programs_are_refused_leaves_nothing_and_says_what_may_refuse_them() {
    for errno in [EPERM, EACCES] {
        let Some(node) = Node::new() else { return };
        pretend_lockdown();
        refuse_each(&node, "program", errno, Duration::Once, |pod, refusal| {
            let output = refused(pod, "ADD", &node.network(), refusal)?;
            assert_says_why(&output, errno, refusal);
            let (_, message) = output.error();
            assert!(message.contains("lockdown is in force (integrity)"), "{refusal}: {message}");
            assert_only(&node, &[], refusal);
            Some(())
        });
    }
}

#[test]
fn a_status_where_programs_are_refused_says_what_may_refuse_them() {
    let Some(node) = Node::new() else { return };
    pretend_lockdown();
    let output = refused(&node.sandbox("a"), "STATUS", &node.network(), "program=return(1)");
    let (code, message) = output.expect("STATUS tries a program").error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("load a minimal TC program"), "{message}");
    assert!(message.contains("lockdown is in force (integrity)"), "{message}");
}

#[test]
fn an_add_whose_pins_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["attach"] = json!("tcx");
    refuse_each_request_of_an_add(&node, &network, "pin", &[ENOSPC, EPERM]);
}

#[test]
fn an_add_whose_nat_rules_cannot_be_read_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    refuse_each_request_of_an_add(&node, &network, "netlink", &[EBUSY, ENOMEM, EPERM]);
}

#[test]
fn an_add_whose_nat_rules_are_refused_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network_with_nat();
    for errno in [ENOMEM, EPERM] {
        refuse_each(&node, "nft", errno, Duration::Once, |pod, refusal| {
            node.run(&["nft", "flush", "ruleset"]);
            let output = refused(pod, "ADD", &network, refusal)?;
            assert_says_why(&output, errno, refusal);
            assert_only(&node, &[], refusal);
            assert_eq!(node.run(&["nft", "list", "tables"]), "", "{refusal}");
            Some(())
        });
    }
}

#[test]
fn an_add_that_fails_at_any_phase_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    refuse_each(&node, "phase", EIO, Duration::Once, |pod, refusal| {
        let output = refused(pod, "ADD", &node.network(), refusal)?;
        let (code, message) = output.error();
        assert_eq!(code, 199, "{refusal}: {message}");
        assert_only(&node, &[], refusal);
        Some(())
    });
}

#[test]
fn a_del_that_is_refused_anything_says_so_and_the_next_one_ends_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    for (kind, errno) in [
        ("netlink", EBUSY),
        ("netlink", EPERM),
        ("entry", ENOMEM),
        ("store", ENOSPC),
        ("store", EIO),
        ("phase", EIO),
    ] {
        refuse_each_request_of_a_del(&node, &network, kind, errno);
    }
}

/// Once, and from then on.
fn refuse_each_request_of_a_del(node: &Node, network: &Value, kind: &str, errno: u32) {
    for duration in [Duration::Once, Duration::FromThenOn] {
        refuse_each(node, kind, errno, duration, |pod, refusal| {
            pod.add(network);
            let Some(output) = refused(pod, "DEL", network, refusal) else {
                pod.del(network);
                return None;
            };
            if output.is_success() {
                assert_only(node, &[], refusal);
            } else {
                let (_, message) = output.error();
                assert!(message.contains(&format!("os error {errno}")), "{message}");
            }
            assert_addresses_are_held_while_there_is_a_link(node, pod, refusal);
            pod.del(network);
            assert_only(node, &[], refusal);
            Some(())
        });
    }
}

/// Once with each errno; with the last one from then on as well.
fn refuse_each_request_of_an_add(node: &Node, network: &Value, kind: &str, errnos: &[u32]) {
    let once = errnos.iter().map(|errno| (*errno, Duration::Once));
    let from_then_on = errnos.last().map(|errno| (*errno, Duration::FromThenOn));
    for (errno, duration) in once.chain(from_then_on) {
        refuse_each(node, kind, errno, duration, |pod, refusal| {
            let output = refused(pod, "ADD", network, refusal)?;
            if output.is_success() {
                // It asked for what there was already, or can do without.
                let check = pod.check(network, &output.success());
                assert!(check.is_success(), "{refusal}: {}", check.stdout());
                pod.del(network);
            } else {
                assert_says_why(&output, errno, refusal);
            }
            if duration == Duration::FromThenOn {
                pod.del(network);
            }
            assert_only(node, &[], refusal);
            Some(())
        });
    }
}

fn assert_says_why(output: &CniOutput, errno: u32, refusal: &str) {
    let (code, message) = output.error();
    assert!(CODES.contains(&code), "{refusal}: {code} {message}");
    let says = match errno {
        // Told in the words of what is in the way, or found not to be.
        EEXIST => true,
        E2BIG => message.contains("is full"),
        errno => message.contains(&format!("os error {errno}")),
    };
    assert!(says, "{refusal}: {message}");
}

/// Else another pod could get the addresses of a pod that has them still.
fn assert_addresses_are_held_while_there_is_a_link(node: &Node, pod: &Pod<'_>, refusal: &str) {
    let store = node.store();
    let ipam = margay_datastore::Ipam::new(&store, "node-under-test", "any");
    let held = ipam.assigned(&pod.attachment("podnet", "eth0")).unwrap();
    let is_there =
        !node.pod_links().is_empty() || !node.datapath().pods().entries().unwrap().is_empty();
    assert!(!is_there || held.len() == 2, "{refusal}: {held:?}");
}

/// A kernel that says of itself that it is locked down, for the test's thread and what it starts.
fn pretend_lockdown() {
    let directory = "/sys/kernel/security";
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(format!("{directory}/lockdown"), "none [integrity] confidentiality\n").unwrap();
}

/// How long requests are refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duration {
    /// One request is.
    Once,
    /// One is, and all that come after it: those of the clean-up as well.
    FromThenOn,
}

/// Has `then` executed with the first request refused, with the second, and so on, until it says
/// that nothing was.
fn refuse_each(
    node: &Node,
    kind: &str,
    errno: u32,
    duration: Duration,
    mut then: impl FnMut(&Pod<'_>, &str) -> Option<()>,
) {
    let pod = node.sandbox("a");
    for number in 0.. {
        let skipped = if number > 0 { format!("{number}*off->") } else { String::new() };
        let count = if duration == Duration::Once { "1*" } else { "" };
        let refusal = format!("{kind}={skipped}{count}return({errno})");
        if then(&pod, &refusal).is_none() {
            assert!(number > 0, "nothing was refused: {refusal}");
            eprintln!("{number} requests refused: {refusal}");
            break;
        }
    }
}

/// The output of a verb that was refused something; `None` if it was not.
fn refused(pod: &Pod<'_>, verb: &str, network: &Value, refusal: &str) -> Option<CniOutput> {
    let output = pod.invocation(verb, network).env("FAILPOINTS", refusal).execute();
    if output.stderr().lines().any(|line| line.starts_with("fail point: ")) {
        return Some(output);
    }
    output.success();
    if verb == "ADD" {
        pod.del(network);
    }
    None
}
