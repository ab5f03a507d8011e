//! That the agent looks after its node: what it finds is tested with the plugin, that it looks is here.

use margay_tests::cluster::{Cluster, Layout, wait_until};
use serde_json::{Value, json};

use crate::failures::hasty;

#[test]
fn what_a_pod_that_vanished_had_is_given_back_and_the_others_stay() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let [one, other] = cluster.nodes() else { panic!("two nodes") };
    for node in cluster.nodes() {
        node.start_agent_with(&often());
    }
    let stays = other.add("stays", &other.network("Always"));
    let goes = one.add("goes", &one.network("Always"));
    let also_stays = one.add("stays", &one.network("Always"));
    cluster.wait_until_all_reach_each_other(&[&stays, &goes, &also_stays]);
    assert_eq!(endpoints(&cluster).len(), 3);

    let gone = goes.container_id().to_owned();
    drop(goes);

    wait_until("its record is gone", || !endpoints(&cluster).contains(&gone));
    assert_eq!(endpoints(&cluster).len(), 2);
    cluster.wait_until_all_reach_each_other(&[&stays, &also_stays]);
}

#[test]
fn a_del_without_etcd_is_made_good_when_it_is_back() {
    let Some(mut cluster) = Cluster::new(Layout::OneSubnet, 1) else { return };
    let network = cluster.nodes()[0].network("Never");
    let pod = cluster.nodes()[0].add("one", &network);
    cluster.etcd().kill(0);
    cluster.nodes()[0].del(&pod, &hasty(network));
    cluster.etcd().restart(0);
    assert_eq!(endpoints(&cluster).len(), 1, "the record is there still");

    cluster.nodes()[0].start_agent_with(&often());

    wait_until("the record is gone", || endpoints(&cluster).is_empty());
}

#[test]
fn an_agent_that_is_there_before_the_first_pod_makes_maps_of_its_size() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 1) else { return };
    let node = &cluster.nodes()[0];

    node.start_agent_with(&json!({"max_pods": 1000, "max_flows": 2000}));

    let size = |name: &str| {
        let maps = margay_datapath::pinned_maps(&node.bpffs_root()).unwrap_or_default();
        maps.iter().find(|map| map.name == name).map(|map| map.max_entries)
    };
    wait_until("the maps are there", || size("flows_v6").is_some());
    assert_eq!((size("pods_v4"), size("flows_v6")), (Some(1000), Some(2000)));
}

/// So that a test need not wait.
fn often() -> Value {
    json!({"upkeep_interval_seconds": 1, "upkeep_grace_seconds": 1})
}

/// The container IDs of all pods that have a record.
fn endpoints(cluster: &Cluster) -> Vec<String> {
    let endpoints = cluster.store().endpoints("podnet").unwrap().into_iter();
    endpoints.map(|endpoint| endpoint.attachment.container_id().to_owned()).collect()
}
