//! BPF file systems, kernels, programs and maps that are not as they should be.

use std::fs;

use margay_abi::{FlowKeyV4, flow_verdict};
use margay_tests::Node;
use margay_tests::ctl::Ctl;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::json;

use super::{Diagnosis, host_veth, node_with_a_pod};

/// A name that no build has.
const OTHER: &str = "0123456789ab";

#[test]
fn a_root_of_pins_that_is_on_no_bpf_file_system_or_cannot_be_written_to_is_named() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["bpffs_root"] = json!(node.path("state"));
    Diagnosis::of(&Ctl::new(&node, &network))
        .assert_found("bpffs-unusable", "not on a BPF file system");

    let ctl = Ctl::new(&node, &node.network());
    mount_remount(node.path("bpf"), MountFlags::RDONLY, "").unwrap();
    Diagnosis::of(&ctl).assert_found("bpffs-unusable", "write to");
}

#[test]
fn the_systems_own_bpf_file_system_is_missed_before_a_runtime_mounts_it() {
    let Some(node) = Node::new() else { return };
    // In the test's own mount namespace.
    while unmount("/sys/fs/bpf", UnmountFlags::DETACH).is_ok() {}
    let mut network = node.network();
    network["bpffs_root"] = json!("/sys/fs/bpf/margay-of-a-test");
    let ctl = Ctl::new(&node, &network);

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("bpffs-not-mounted", "/sys/fs/bpf");
    diagnosis.assert_only(&["bpffs-not-mounted", "datastore-absent"]);
}

#[test]
fn pins_that_are_in_another_mount_namespace_are_missed() {
    let Some(node) = Node::new() else { return };
    let (ctl, _pod, _) = node_with_a_pod(&node, &node.network());
    // As it looks from outside of the runtime's mount namespace.
    mount("bpf", node.path("bpf"), "bpf", MountFlags::empty(), None).unwrap();

    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("bpffs-private", "interfaces of 1 pods run programs");
    diagnosis.assert_only(&["bpffs-private"]);

    // Programs of its own would have maps of their own.
    let mended = Diagnosis::with(&ctl, &["--fix"]);
    mended.assert_only(&["bpffs-private"]);
    assert!(!node.bpffs_root().exists());
    unmount(node.path("bpf"), UnmountFlags::empty()).unwrap();
}

#[test]
fn a_kernel_that_refuses_programs_is_named() {
    let Some(node) = Node::new() else { return };
    let ctl = Ctl::new(&node, &node.network());
    let mut command = ctl.command(&["doctor", "-o", "json"]);

    let diagnosis = Diagnosis::by(command.env("FAILPOINTS", "program=return(1)"));

    diagnosis.assert_found("kernel-refuses", "load a minimal TC program");
}

#[test]
fn programs_that_nobody_finds_again_are_missed() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    (network["max_pods"], network["max_flows"]) = (json!(1000), json!(2000));
    let (ctl, _pod, result) = node_with_a_pod(&node, &network);
    fs::remove_dir_all(node.bpffs_root()).unwrap();
    node.run(&["tc", "qdisc", "del", "dev", host_veth(&result), "clsact"]);

    Diagnosis::of(&ctl).assert_found("programs-missing", "for 1 pods");

    let mended = Diagnosis::with(&ctl, &["--fix"]);
    mended.assert_only(&[]);
    assert!(mended.done().contains(&"attached the programs of podnet/a/eth0"), "{mended:#?}");
    // The maps are as large as the next ADD would have made them.
    let maps = ctl.json(&["datapath", "maps"]).to_string();
    assert!(
        maps.contains("\"max_entries\":1000") && maps.contains("\"max_entries\":2000"),
        "{maps}"
    );
}

#[test]
fn programs_of_another_build_are_named_with_the_pods_that_run_them() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (ctl, old, _) = node_with_a_pod(&node, &network);
    let progs = node.pins().join("progs");
    fs::rename(progs.join(node.datapath().build()), progs.join(OTHER)).unwrap();
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("programs-other-build", OTHER);
    diagnosis.assert_only(&["programs-other-build"]);
    // That is for `datapath upgrade`.
    Diagnosis::with(&ctl, &["--fix"]).assert_only(&["programs-other-build"]);

    let new = node.sandbox("b");
    new.add(&network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("endpoint-old-build", OTHER);
    diagnosis.assert_only(&["endpoint-old-build"]);

    old.del(&network);
    let diagnosis = Diagnosis::of(&ctl);
    diagnosis.assert_found("programs-unused", OTHER);
    diagnosis.assert_only(&["programs-unused"]);
    Diagnosis::with(&ctl, &["--fix"]).assert_only(&[]);
    assert!(!progs.join(OTHER).exists());
}

#[test]
fn maps_that_are_nearly_full_are_named() {
    const FLOWS: u32 = 64;
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    (network["max_pods"], network["max_flows"]) = (json!(1), json!(FLOWS));
    let (ctl, _pod, _) = node_with_a_pod(&node, &network);
    // More than there is room for: what is least used goes, and not one at a time.
    for flow in 0..FLOWS {
        let key = FlowKeyV4 {
            src: flow.to_be_bytes(),
            dst: [10, 244, 0, 9],
            src_port: [0, 1],
            dst_port: [0, 1],
            protocol: 17,
            reserved: [0; 3],
        };
        node.datapath().flows().set_v4(&key, flow_verdict::DIRECT).unwrap();
    }

    let diagnosis = Diagnosis::of(&ctl);

    diagnosis.assert_found("map-nearly-full", "pods_v4 has 1 entries of 1");
    diagnosis.assert_found("map-nearly-full", "pods_v6 has 1 entries of 1");
    diagnosis.assert_found("flows-nearly-full", "flows_v4 has");
}
