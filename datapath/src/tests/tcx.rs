//! TCX links.

use std::fs;

use rtnetlink::Handle;

use super::node::{HOST_VETH, create_veth, delete_veth, on_a_node, with_netlink};
use crate::{AttachError, AttachMode, AttachedPrograms, Datapath};

const MODE: AttachMode = AttachMode::Tcx;

#[test]
fn a_link_outlives_whoever_attached_and_attaching_twice_is_attaching_once() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let ifindex = create_veth(netlink).await;
            let datapath = node.open_or_load();
            for _ in 0..2 {
                datapath.attach(netlink, ifindex, MODE).await.expect("attach");
                let attached = datapath.inspect(netlink, ifindex, MODE).await.expect("inspect");
                assert_eq!(attached, datapath.program_ids());
            }
            assert_eq!(node.tree(&node.pins().join("links")).len(), 2);
        });
    });
}

#[test]
fn another_build_takes_the_place_of_the_first() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let first = node.open_or_load();
            let next = node.open_or_load_next_build();
            let ifindex = create_veth(netlink).await;
            first.attach(netlink, ifindex, MODE).await.expect("attach");

            next.attach(netlink, ifindex, MODE).await.expect("attach in place");

            let attached = first.inspect(netlink, ifindex, MODE).await.expect("inspect");
            assert_eq!(attached, next.program_ids());
            assert_eq!(node.tree(&node.pins().join("links")).len(), 2);
        });
    });
}

#[test]
fn detaching_leaves_nothing_and_is_content_with_nothing() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            let ifindex = create_veth(netlink).await;
            datapath.attach(netlink, ifindex, MODE).await.expect("attach");

            datapath.detach(netlink, ifindex, MODE).await.expect("detach");

            let attached = datapath.inspect(netlink, ifindex, MODE).await.expect("inspect");
            assert_eq!(attached, AttachedPrograms::default());
            assert!(node.tree(&node.pins().join("links")).is_empty());
            datapath.detach(netlink, ifindex, MODE).await.expect("detach nothing");
        });
    });
}

#[test]
fn the_pin_of_an_interface_that_went_away_is_replaced() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            let ifindex = attach_and_delete_veth(&datapath, netlink).await;
            let successor = create_veth(netlink).await;
            let stale = datapath.inspect(netlink, successor, MODE).await.expect("inspect");
            assert_eq!(stale, AttachedPrograms::default());

            datapath.attach(netlink, successor, MODE).await.expect("attach");

            assert_ne!(ifindex, successor);
            let attached = datapath.inspect(netlink, successor, MODE).await.expect("inspect");
            assert_eq!(attached, datapath.program_ids());
        });
    });
}

#[test]
fn links_of_an_interface_that_went_away_are_removed_by_name() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            attach_and_delete_veth(&datapath, netlink).await;

            let removed = Datapath::remove_links(&node.root(), HOST_VETH).expect("remove");

            assert!(removed);
            assert!(node.tree(&node.pins().join("links")).is_empty());
            assert!(!Datapath::remove_links(&node.root(), HOST_VETH).expect("remove nothing"));
        });
    });
}

#[test]
fn an_interface_that_is_not_there_is_an_error_that_says_so() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let result = node.open_or_load().attach(netlink, 4711, MODE).await;

            assert!(
                matches!(result, Err(AttachError::NoInterface { ifindex: 4711 })),
                "{result:?}"
            );
        });
    });
}

/// Returns the index the interface had.
async fn attach_and_delete_veth(datapath: &Datapath, netlink: &Handle) -> u32 {
    let ifindex = create_veth(netlink).await;
    datapath.attach(netlink, ifindex, MODE).await.expect("attach");
    delete_veth(netlink, ifindex).await;
    assert!(fs::exists(datapath.pins().links()).expect("look for the pins"));
    ifindex
}
