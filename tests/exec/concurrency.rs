//! Many plugins at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use margay_tests::{CniOutput, Node, Pod};

const PODS: usize = 50;

#[test]
fn fifty_adds_at_once_all_succeed_with_addresses_of_their_own_and_fifty_dels_leave_nothing() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pods: Vec<Pod<'_>> = (0..PODS).map(|n| node.sandbox(&format!("pod{n}"))).collect();

    // All of them find a node without programs: one loads, the others wait for it.
    let adds: Vec<_> = pods.iter().map(|pod| pod.invocation("ADD", &network).start()).collect();
    let results: Vec<_> = adds.into_iter().map(|child| CniOutput::of(child).success()).collect();

    let addresses: BTreeSet<IpAddr> =
        results.iter().flat_map(|result| [address(result, true), address(result, false)]).collect();
    assert_eq!(addresses.len(), 2 * PODS);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 2 * PODS);
    assert_eq!(node.pod_links().len(), PODS);
    for (pod, other) in [(0, 49), (17, 3), (49, 25)] {
        assert_ping(&pods[pod], address(&results[other], true));
        assert_ping(&pods[pod], address(&results[other], false));
    }

    let dels: Vec<_> = pods.iter().map(|pod| pod.invocation("DEL", &network).start()).collect();
    for child in dels {
        CniOutput::of(child).success();
    }
    assert_eq!(node.pod_links(), []);
    assert_eq!(node.datapath().pods().entries().unwrap().len(), 0);
}

#[test]
fn of_two_adds_of_one_attachment_at_once_exactly_one_succeeds() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    for round in 0..5 {
        let pod = node.sandbox(&format!("pod{round}"));
        let both = [(); 2].map(|()| pod.invocation("ADD", &network).start());
        let outputs = both.map(CniOutput::of);

        let succeeded = outputs.iter().filter(|output| output.is_success()).count();
        assert_eq!(succeeded, 1, "{}{}", outputs[0].stderr(), outputs[1].stderr());
        let winner = outputs.iter().find(|output| output.is_success()).unwrap().success();
        assert!(pod.check(&network, &winner).is_success());
        assert_ping(&node, address(&winner, true));
    }
}
