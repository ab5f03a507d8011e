//! That the agent looks after its node: what it finds is tested with the plugin, that it looks is here.

use margay_tests::cluster::{Cluster, Layout, wait_until};
use serde_json::json;

#[test]
fn what_a_pod_that_vanished_had_is_given_back_and_the_others_stay() {
    let Some(cluster) = Cluster::new(Layout::OneSubnet, 2) else { return };
    let [one, other] = cluster.nodes() else { panic!("two nodes") };
    let hasty = json!({"upkeep_interval_seconds": 1, "upkeep_grace_seconds": 1});
    for node in cluster.nodes() {
        node.start_agent_with(&hasty);
    }
    let stays = other.add("stays", &other.network("Always"));
    let goes = one.add("goes", &one.network("Always"));
    let also_stays = one.add("stays", &one.network("Always"));
    cluster.wait_until_all_reach_each_other(&[&stays, &goes, &also_stays]);
    let endpoints = || {
        let endpoints = cluster.store().endpoints("podnet").unwrap().into_iter();
        endpoints.map(|endpoint| endpoint.attachment.container_id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(endpoints().len(), 3);

    let gone = goes.container_id().to_owned();
    drop(goes);

    wait_until("its record is gone", || !endpoints().contains(&gone));
    assert_eq!(endpoints().len(), 2);
    cluster.wait_until_all_reach_each_other(&[&stays, &also_stays]);
}
