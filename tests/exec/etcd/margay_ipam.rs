//! margay-ipam, called by another plugin, on etcd.

use std::time::Duration;

use margay::config::NetConf;
use margay::ipam::open_store;
use margay::upkeep::Upkeep;
use margay_datastore::testing::etcd::EtcdCluster;
use margay_tests::{CniOutput, Invocation, Node};
use serde_json::{Value, json};

use super::Scene;

#[test]
fn margay_ipam_under_another_plugin_finds_etcd_where_calicos_does() {
    let Some(node) = Node::new() else { return };
    let scene = Scene::new(&node, EtcdCluster::start());
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "podnet",
        "type": "ptp",
        "datastore_type": "etcdv3",
        "etcd_endpoints": scene.network["etcd_endpoints"],
        "ipam": {
            "type": "margay-ipam",
            "state_dir": node.path("state"),
            "run_dir": node.path("run"),
            "pools": [{"cidr": "10.251.0.0/24"}],
        },
    });
    let verb = |verb| ipam_verb(verb, "a", &network);

    verb("ADD").success();
    assert_eq!(scene.keys("handles/"), ["handles/podnet/a/eth0"]);
    assert!(verb("DEL").is_success());
    assert_eq!(scene.keys("handles/"), [] as [&str; 0]);
}

#[test]
fn a_del_of_margay_ipam_without_etcd_succeeds_and_what_comes_next_gives_the_addresses_back() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let mut network = scene.of_margay_ipam();
    // One address.
    network["ipam"]["pools"] = json!([{"cidr": "10.251.0.0/30"}]);
    type Next = fn(&Scene<'_>, &Value);
    let next: [(&str, Next); 4] = [
        ("its own ADD", |_, network| drop(ipam_verb("ADD", "a", network).success())),
        ("another's ADD", |_, network| drop(ipam_verb("ADD", "b", network).success())),
        ("STATUS", |_, network| drop(Invocation::new("margay-ipam", "STATUS", network).execute())),
        ("upkeep", |scene, _| {
            let conf = NetConf::from_map(scene.network.as_object().unwrap()).unwrap();
            let store = open_store(&conf.datastore, &conf.paths.database()).unwrap();
            let drained = margay_tests::node::block_on(async {
                let upkeep = Upkeep::new(store, &conf.nodename, conf.paths, Duration::ZERO);
                upkeep.unwrap().drain_deletions().await.unwrap()
            });
            assert_eq!(drained, 1);
        }),
    ];
    for (name, next) in next {
        ipam_verb("ADD", "a", &network).success();
        scene.cluster.kill(0);
        let (code, _) = ipam_verb("ADD", "c", &network).error();
        assert_eq!(code, 11, "{name}");
        for _ in 0..2 {
            assert!(ipam_verb("DEL", "a", &network).is_success(), "{name}");
        }
        assert_eq!(scene.put_off(), 1, "{name}");

        scene.cluster.restart(0);
        assert_eq!(scene.keys("handles/"), ["handles/podnet/a/eth0"], "{name}");
        next(&scene, &network);

        assert_eq!(scene.put_off(), 0, "{name}");
        let left: &[&str] = match name {
            "its own ADD" => &["handles/podnet/a/eth0"],
            "another's ADD" => &["handles/podnet/b/eth0"],
            _ => &[],
        };
        assert_eq!(scene.keys("handles/"), left, "{name}");
        for container in ["a", "b"] {
            assert!(ipam_verb("DEL", container, &network).is_success(), "{name}");
        }
        assert_eq!(scene.keys("handles/"), [] as [&str; 0], "{name}");
        assert_eq!(std::fs::read_dir(node.path("run/lock")).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_status_of_margay_ipam_that_lacks_a_pool_gives_back_what_was_put_off_all_the_same() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let mut network = scene.of_margay_ipam();
    ipam_verb("ADD", "a", &network).success();
    scene.cluster.kill(0);
    assert!(ipam_verb("DEL", "a", &network).is_success());
    scene.cluster.restart(0);
    network["ipam"]["ipv4_pools"] = json!(["blue"]);

    let (code, message) = Invocation::new("margay-ipam", "STATUS", &network).execute().error();

    assert_eq!(code, 50, "{message}");
    assert!(message.contains("\"blue\""), "{message}");
    assert_eq!((scene.put_off(), scene.keys("handles/")), (0, vec![]));
}

#[test]
fn margay_ipam_leaves_to_margay_what_has_an_endpoint_unless_it_is_called_for_that() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let of_ipam = scene.of_margay_ipam();

    scene.put_off_dels_of(&["a"]);
    Invocation::new("margay-ipam", "STATUS", &of_ipam).execute().success();
    ipam_verb("ADD", "b", &of_ipam).success();
    assert_eq!(scene.put_off(), 1);
    assert_eq!(scene.keys("handles/podnet/a/").len(), 1, "an address that is in a record is held");
    scene.status().success();
    assert_eq!((scene.put_off(), scene.keys("endpoints/").len()), (0, 0));

    for verb in ["ADD", "DEL"] {
        scene.put_off_dels_of(&["a"]);
        assert_eq!(scene.keys("endpoints/").len(), 1, "{verb}");
        assert!(ipam_verb(verb, "a", &of_ipam).is_success(), "{verb}");
        assert_eq!((scene.put_off(), scene.keys("endpoints/").len()), (0, 0), "{verb}");
        scene.status().success();
        assert_eq!(scene.keys("handles/podnet/a/").len(), usize::from(verb == "ADD"), "{verb}");
        assert!(ipam_verb("DEL", "a", &of_ipam).is_success(), "{verb}");
    }
    assert!(ipam_verb("DEL", "b", &of_ipam).is_success());
    scene.assert_only(&[], "after all");
}

#[test]
fn margay_ipam_gives_back_what_it_is_called_for_though_the_endpoint_is_damaged() {
    let Some(node) = Node::new() else { return };
    let mut scene = Scene::new(&node, EtcdCluster::start());
    let of_ipam = scene.of_margay_ipam();
    scene.put_off_dels_of(&["a"]);
    scene.damage(&scene.keys("endpoints/")[0]);

    let released = ipam_verb("DEL", "a", &of_ipam);

    assert!(released.is_success(), "{released:?}");
    assert_eq!(scene.put_off(), 0);
    scene.assert_only(&[], "after DEL");
}

fn ipam_verb(verb: &str, container: &str, network: &Value) -> CniOutput {
    Invocation::new("margay-ipam", verb, network)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", "/nowhere/netns")
        .env("CNI_IFNAME", "eth0")
        .execute()
}
