//! Clsact filters.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{mem, thread};

use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use margay_abi::Counter;
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
fn no_packet_passes_by_while_builds_take_turns() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let builds = [node.open_or_load(), node.open_or_load_next_build()];
            let ifindex = create_veth(netlink).await;
            let socket = connect_through(netlink, ifindex).await;
            builds[0].attach(netlink, ifindex, MODE).await.expect("attach");

            let done = Arc::new(AtomicBool::new(false));
            let sender = thread::spawn({
                let done = Arc::clone(&done);
                move || send_until(&done, &socket)
            });
            for turn in 0..200 {
                let build = &builds[turn % 2];
                build.attach(netlink, ifindex, MODE).await.expect("attach in place");
            }
            done.store(true, Ordering::Relaxed);

            let sent = sender.join().expect("the sender");
            let stats = builds[0].stats().expect("read the counters");
            let (_, counted) = stats[Counter::ToPod as usize];
            // What else the interface sends (MLD) is far too small to stand in for one of these.
            assert!(sent > 200, "{sent} packets are no traffic");
            assert!(counted.bytes >= sent * FRAME_BYTES, "{sent} sent, {counted:?} seen");
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

/// Returns the number of packets sent. Gives up before a failing test hangs.
fn send_until(done: &AtomicBool, socket: &UdpSocket) -> u64 {
    let started = Instant::now();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) && started.elapsed() < Duration::from_secs(30) {
        socket.send(&PAYLOAD).expect("send");
        sent += 1;
    }
    sent
}

const PAYLOAD: [u8; 1400] = [0; 1400];
/// With Ethernet, IPv4 and UDP headers.
const FRAME_BYTES: u64 = 1400 + 14 + 20 + 8;

/// A socket whose packets leave by the host veth to a neighbour that needs no look-up.
async fn connect_through(netlink: &Handle, ifindex: u32) -> UdpSocket {
    let [host, pod] = [[10, 9, 9, 1], [10, 9, 9, 2]];
    netlink.address().add(ifindex, host.into(), 24).execute().await.expect("add an address");
    let neighbour = netlink.neighbours().add(ifindex, pod.into()).link_layer_address(&[2; 6]);
    neighbour.execute().await.expect("add a neighbour");
    let socket = UdpSocket::bind((IpAddr::from(host), 0)).expect("bind");
    socket.connect((IpAddr::from(pod), 9)).expect("connect");
    socket
}

/// Attaches a program at ingress in front of margay's.
fn attach_foreign(node: &Node) {
    let pin = node.pins().join("progs").join(node.build.id).join("to_pod");
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
