//! The fast path between nodes: its programs, and the maps that tell of other nodes.

use std::fs;

use ipnetwork::IpNetwork;
use margay_abi::{ABI_VERSION, Overlay, Remote, map_name, remote_mode};

use super::node::{create_veth, delete_veth, on_a_node, with_netlink};
use crate::{AttachMode, Datapath, NodeDatapath, NodeInterface, Program};

fn remote(last: u8) -> Remote {
    let mut node = [0; 16];
    node[10..].copy_from_slice(&[0xff, 0xff, 192, 168, 0, last]);
    Remote { node, mtu: 1450, mac: [2; 6], mode: remote_mode::VXLAN, reserved: 0 }
}

fn prefix(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

#[test]
fn the_programs_of_nodes_are_no_part_of_what_a_pod_loads() {
    on_a_node(|node| {
        let pods = node.open_or_load();
        assert!(NodeDatapath::open(&node.root()).expect("open").is_none());

        let nodes = NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");

        for program in Program::OF_NODE {
            let id = nodes.program_id(program).expect("a program of nodes");
            assert_eq!(
                NodeDatapath::open(&node.root()).expect("open").expect("pins").program_id(program),
                Some(id),
            );
            println!("{}: {:?}", program.name(), nodes.program_size(program));
        }
        for program in Program::OF_POD {
            println!("{}: {:?}", program.name(), pods.program_size(program));
        }
        nodes.remotes().set(prefix("10.0.0.0/26"), &remote(1)).expect("set");
        assert_eq!(pods.remotes().entries().expect("entries").len(), 1, "the maps are the same");
    });
}

#[test]
fn nodes_may_come_before_pods() {
    on_a_node(|node| {
        let nodes = NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");
        assert!(node.open().is_none());

        nodes.remotes().set(prefix("10.0.0.0/26"), &remote(1)).expect("set");

        assert_eq!(node.open_or_load().remotes().entries().expect("entries").len(), 1);
    });
}

#[test]
fn programs_of_nodes_whose_maps_were_unpinned_are_loaded_again() {
    on_a_node(|node| {
        let load = || NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");
        let ids = |nodes: &NodeDatapath| Program::OF_NODE.map(|of_node| nodes.program_id(of_node));
        for map in map_name::ALL {
            let before = load();
            fs::remove_file(node.pins().join("maps").join(map)).expect("unpin a map");
            drop(node.open_or_load());

            let opened = NodeDatapath::open(&node.root()).expect("open");

            assert!(opened.is_none(), "its programs use a {map} that nobody can reach");
            assert!(ids(&load()).iter().all(|id| !ids(&before).contains(id)), "{map}");
        }
    });
}

#[test]
fn the_longest_prefix_counts_and_goes_by_its_own_name() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let remotes = datapath.remotes();
        for (pool, block, address) in [
            ("10.0.0.0/16", "10.0.3.64/26", "10.0.3.70"),
            ("fd00::/48", "fd00::3:40/122", "fd00::3:46"),
        ] {
            let address = address.parse().expect("an address");
            remotes.set(prefix(pool), &remote(1)).expect("set");
            remotes.set(prefix(block), &remote(2)).expect("set");
            assert_eq!(remotes.get(address).expect("get"), Some(remote(2)));

            assert!(remotes.remove(prefix(block)).expect("remove"));
            assert!(!remotes.remove(prefix(block)).expect("remove"), "it is gone");
            assert_eq!(remotes.get(address).expect("get"), Some(remote(1)));

            remotes.set(prefix(pool), &remote(3)).expect("replace");
            assert_eq!(remotes.get(address).expect("get"), Some(remote(3)));
        }
        let entries = remotes.entries().expect("entries");
        let expected = ["10.0.0.0/16", "fd00::/48"].map(|pool| (prefix(pool), remote(3)));
        assert_eq!(entries, expected.into());
        assert_eq!(remotes.get([10, 1, 0, 0].into()).expect("get"), None);
    });
}

#[test]
fn earlier_versions_lose_their_ways_and_what_they_know_of_flows() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let (remotes, flows) = (datapath.remotes(), datapath.flows());
        for to in ["10.0.0.0/16", "10.0.3.64/26", "10.0.3.70/32", "fd00::/48", "fd00::3:40/122"] {
            remotes.set(prefix(to), &remote(1)).expect("set");
        }
        flows.fill_for_test(5);
        let withdraw = || Datapath::withdraw_earlier_ways(&node.root()).expect("withdraw");
        let what_there_is =
            || (remotes.entries().expect("entries").len(), flows.count().expect("count flows"));
        let become_version = |from: u32, to: u32| {
            let [from, to] = [from, to].map(|version| node.root().join(version.to_string()));
            fs::rename(from, to).expect("rename the pins");
        };

        assert!(!withdraw(), "they are this version's");
        become_version(ABI_VERSION, ABI_VERSION + 1);
        assert!(!withdraw(), "they are a later one's");
        assert_eq!(what_there_is(), (5, 10));

        become_version(ABI_VERSION + 1, ABI_VERSION - 1);
        assert!(withdraw());
        assert_eq!(what_there_is(), (0, 0));

        flows.fill_for_test(2);
        assert!(!withdraw());
        assert_eq!(what_there_is(), (0, 4), "flows between its pods are its programs' again");
    });
}

#[test]
fn host_bits_of_a_prefix_are_nobodys() {
    on_a_node(|node| {
        let datapath = node.open_or_load();
        let remotes = datapath.remotes();
        remotes.set(prefix("10.0.0.77/26"), &remote(1)).expect("set");

        assert!(remotes.remove(prefix("10.0.0.64/26")).expect("remove"));
    });
}

#[test]
fn there_is_no_overlay_until_it_is_told() {
    on_a_node(|node| {
        let nodes = NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");
        assert_eq!(nodes.overlay().expect("read"), Overlay::default());
        let overlay =
            Overlay { ifindex_v4: 3, ifindex_v6: 4, vni: 4096, port: [0x12, 0xb5], mac: [2; 6] };

        nodes.set_overlay(&overlay).expect("write");

        assert_eq!(node.open_or_load().overlay().expect("read"), overlay);
    });
}

#[test]
fn pods_can_be_taken_over_and_left_alone_again() {
    on_a_node(|node| {
        let nodes = NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");
        for _ in 0..2 {
            nodes.take_over_from_pods().expect("take over");
        }
        drop(nodes);
        let nodes = NodeDatapath::open(&node.root()).expect("open").expect("pins");
        for _ in 0..2 {
            nodes.leave_pods_alone().expect("leave alone");
        }
    });
}

#[test]
fn an_interface_gets_its_programs_and_loses_them() {
    on_a_node(|node| {
        with_netlink(async |netlink| {
            let nodes = NodeDatapath::open_or_load(&node.root(), &node.options).expect("load");
            for mode in [AttachMode::Clsact, AttachMode::Tcx] {
                for interface in [NodeInterface::Overlay, NodeInterface::Uplink] {
                    let ifindex = create_veth(netlink).await;
                    let is_attached = async || {
                        nodes.is_attached(netlink, ifindex, interface, mode).await.expect("look")
                    };
                    assert!(!is_attached().await);

                    for _ in 0..2 {
                        nodes.attach(netlink, ifindex, interface, mode).await.expect("attach");
                        assert!(is_attached().await);
                    }

                    for _ in 0..2 {
                        nodes.detach(netlink, ifindex, interface, mode).await.expect("detach");
                        assert!(!is_attached().await);
                    }
                    delete_veth(netlink, ifindex).await;
                }
            }
        });
    });
}
