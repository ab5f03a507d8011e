//! `margayctl endpoint`.

use margay_tests::Node;
use margay_tests::ctl::Ctl;

#[test]
fn endpoints_are_listed_with_their_addresses() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pods = [node.sandbox("a"), node.sandbox("b")];
    let results = pods.each_ref().map(|pod| pod.add(&network));

    let listed = ctl.json(&["endpoint", "list"]);

    let endpoints = listed["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 2);
    let text = ctl.text(&["endpoint", "list"]);
    for (endpoint, result) in endpoints.iter().zip(&results) {
        for (ip, expected) in
            endpoint["ips"].as_array().unwrap().iter().zip(result["ips"].as_array().unwrap())
        {
            assert_eq!(*ip, expected["address"]);
            let address = ip.as_str().unwrap().split('/').next().unwrap();
            assert!(text.contains(address), "{address} is not in\n{text}");
        }
    }
}

#[test]
fn without_a_datastore_it_says_so_and_makes_none() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());

    let printed = ctl.run(&["endpoint", "list"]);

    assert_eq!(printed.code, 1);
    assert!(printed.stderr.contains("there is no datastore at"), "{printed:?}");
    assert!(printed.stderr.contains("margayctl doctor"), "{printed:?}");
    assert!(!node.path("state/margay.db").exists());
}
