//! What a pod sends as soon as its ADD is over is sent.

use std::sync::mpsc;
use std::thread;

use futures_util::TryStreamExt as _;
use margay::netlink::Netlink;
use margay_tests::node::block_on;
use margay_tests::{Node, Pod, requirements};
use netlink_packet_route::link::{LinkAttribute, State};
use serde_json::Value;

/// A worker of the kernel that others keep waiting sets operational states; until then the interface has a carrier
/// and drops what it is given.
#[test]
fn after_add_the_pods_interface_is_ready_to_send_however_much_else_is_going_on() {
    const AT_ONCE: u32 = 4;
    const EACH: u32 = 50;
    if linux_version() < [6, 8] {
        requirements::skip("needs Linux 6.8, which does the worker's work for who looks a link up");
        return;
    }
    let Some(node) = Node::new() else { return };
    let network = node.network();

    thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let (node, network) = (&node, &network);
            scope.spawn(move || {
                for round in 0..EACH {
                    let pod = node.sandbox(&format!("{number}-{round}"));
                    assert_eq!(state_after_add(&pod, network), State::Up, "{number}, {round}");
                    pod.del(network);
                }
            });
        }
    });
}

fn state_after_add(pod: &Pod<'_>, network: &Value) -> State {
    let (added, is_added) = mpsc::channel();
    let (listening, is_listening) = mpsc::channel();
    thread::scope(|scope| {
        // There before, so that it sees the state at once.
        let observer = scope.spawn(move || {
            pod.enter(move || {
                block_on(async {
                    let netlink = Netlink::open().unwrap();
                    listening.send(()).unwrap();
                    is_added.recv().unwrap();
                    state(&netlink).await
                })
            })
        });
        is_listening.recv().unwrap();
        pod.add(network);
        added.send(()).unwrap();
        observer.join().unwrap()
    })
}

fn linux_version() -> [u32; 2] {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

/// By a dump: who asks for one link has its state brought up to date.
async fn state(netlink: &Netlink) -> State {
    let links: Vec<_> = netlink.handle().link().get().execute().try_collect().await.unwrap();
    let name = LinkAttribute::IfName("eth0".to_owned());
    let eth0 = links.into_iter().find(|link| link.attributes.contains(&name)).unwrap();
    let state = |attribute| match attribute {
        LinkAttribute::OperState(state) => Some(state),
        _ => None,
    };
    eth0.attributes.into_iter().find_map(state).unwrap()
}
