//! Clsact filters.

use std::mem;

use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use rtnetlink::Handle;

use super::node::{HOST_VETH, Node, create_veth, delete_veth, on_a_node, with_netlink};
use crate::attach::clsact::has_filters;
use crate::{AttachError, AttachMode, AttachedPrograms, Program};

const MODE: AttachMode = AttachMode::Clsact;

#[test]
fn attaching_twice_is_attaching_once() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            let ifindex = create_veth(netlink).await;
            let nothing = datapath.inspect(netlink, ifindex, MODE).await.expect("inspect");
            assert_eq!(nothing, AttachedPrograms::default());

            for _ in 0..2 {
                datapath.attach(netlink, ifindex, MODE).await.expect("attach");
                let attached = datapath.inspect(netlink, ifindex, MODE).await.expect("inspect");
                assert_eq!(attached, datapath.program_ids());
            }
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
            create_ingress_qdisc(netlink, ifindex).await.expect("the clsact qdisc is gone");
            datapath.detach(netlink, ifindex, MODE).await.expect("detach nothing");
            delete_veth(netlink, ifindex).await;
            datapath.detach(netlink, ifindex, MODE).await.expect("detach from nothing");
        });
    });
}

#[test]
fn filters_of_others_stay_and_keep_the_qdisc() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            let ifindex = create_veth(netlink).await;
            datapath.attach(netlink, ifindex, MODE).await.expect("attach");
            attach_foreign(node);

            datapath.attach(netlink, ifindex, MODE).await.expect("attach again");
            datapath.detach(netlink, ifindex, MODE).await.expect("detach");

            let attached = datapath.inspect(netlink, ifindex, MODE).await.expect("inspect");
            assert_eq!(attached, AttachedPrograms::default());
            let filters =
                async |program| has_filters(netlink, ifindex, program).await.expect("list");
            assert!(filters(Program::FromPod).await);
            assert!(!filters(Program::ToPod).await);
        });
    });
}

#[test]
fn an_ingress_qdisc_of_others_is_an_error_and_stays() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let datapath = node.open_or_load();
            let ifindex = create_veth(netlink).await;
            create_ingress_qdisc(netlink, ifindex).await.expect("create an ingress qdisc");

            let result = datapath.attach(netlink, ifindex, MODE).await;

            assert!(matches!(result, Err(AttachError::IngressQdisc { .. })), "{result:?}");
            datapath.detach(netlink, ifindex, MODE).await.expect("detach nothing");
            create_ingress_qdisc(netlink, ifindex).await.expect_err("it is there already");
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

/// Attaches a program at ingress in front of margay's.
fn attach_foreign(node: &Node) {
    let pin = node.root().join("1/progs").join(node.build.id).join("to_pod");
    let mut classifier = SchedClassifier::from_pin(pin).expect("open a program");
    let options = NlOptions { priority: 7, handle: TcHandle::new(0, 1), classid: None };
    let id = classifier
        .attach_with_options(HOST_VETH, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
        .expect("attach a foreign filter");
    mem::forget(classifier.take_link(id).expect("the link"));
}

async fn create_ingress_qdisc(netlink: &Handle, ifindex: u32) -> Result<(), rtnetlink::Error> {
    netlink.qdisc().add(ifindex.cast_signed()).ingress().execute().await
}
