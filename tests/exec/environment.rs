//! A node that is broken: disk full, file systems read-only. Errors say what is wrong, and what is
//! left is gone after the first DEL that finds the node mended.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use margay_tests::residue::assert_only;
use margay_tests::{Invocation, Node, Pod};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};

#[test]
fn a_full_disk_is_an_error_that_says_so_and_is_over_when_there_is_room_again() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let disk = Disk::new(&node);
    let (before, during) = (node.sandbox("before"), node.sandbox("during"));
    let result = before.add(&network);
    let room_left = disk.fill();

    let (code, message) = during.invocation("ADD", &network).execute().error();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("full"), "{message}");
    assert_eq!(node.pod_links().len(), 1, "{message}");
    assert_not_ready(&network, "No space left");
    let del = before.invocation("DEL", &network).execute();
    if !del.is_success() {
        let (code, message) = del.error();
        assert_eq!(code, 5, "{message}");
        assert!(message.contains("full"), "{message}");
    }
    assert_eq!(node.pod_links(), [], "a DEL takes the link away though it cannot write that down");

    drop(room_left);
    before.del(&network);
    during.del(&network);
    assert_only(&node, &[], "with room again");
    let again = before.add(&network);
    assert_only(&node, &[(&before, &again)], "with room again");
    drop(result);
    before.del(&network);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_in_no_later_adds_way() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let disk = Disk::new(&node);
    let pod = node.sandbox("a");
    let room_left = disk.fill();

    let (code, message) = pod.invocation("ADD", &network).execute().error();
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("full") || message.contains("No space left"), "{message}");
    assert_not_ready(&network, "No space left");

    drop(room_left);
    let result = pod.add(&network);
    assert_only(&node, &[(&pod, &result)], "with room again");
    pod.del(&network);
}

#[test]
fn a_read_only_state_directory_is_an_error_that_says_so() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (before, during) = (node.sandbox("before"), node.sandbox("during"));
    before.add(&network);
    let read_only = ReadOnly::new(node.path("state"));

    assert_refused(&during, "ADD", &network, 5, "read-only");
    assert_refused(&before, "DEL", &network, 5, "read-only");
    assert_not_ready(&network, "Read-only");

    drop(read_only);
    before.del(&network);
    assert_only(&node, &[], "writable again");
}

#[test]
fn a_read_only_state_directory_without_a_database_is_an_error_that_names_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let _read_only = ReadOnly::new(node.path("state"));

    assert_refused(&pod, "ADD", &network, 5, "state/margay.db");
    assert_not_ready(&network, "Read-only");
}

#[test]
fn a_read_only_run_directory_is_an_error_that_names_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let read_only = ReadOnly::new(node.path("run"));

    assert_refused(&pod, "ADD", &network, 5, "run/lock");
    assert_not_ready(&network, "/run");

    drop(read_only);
    pod.add(&network);
    pod.del(&network);
    assert_only(&node, &[], "writable again");
}

#[test]
fn read_only_sysctls_are_an_error_that_names_the_first_that_would_have_to_change() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let (before, during) = (node.sandbox("before"), node.sandbox("during"));
    before.add(&network);
    let read_only = ReadOnly::new(PathBuf::from("/proc/sys"));

    assert_refused(&during, "ADD", &network, 5, "sysctl net/");
    before.del(&network);

    assert_only(&node, &[], "read-only /proc/sys");
    drop(read_only);
}

#[test]
fn a_read_only_bpf_file_system_is_an_error_that_names_it() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let pod = node.sandbox("a");
    let read_only = ReadOnly::new(node.path("bpf"));

    assert_refused(&pod, "ADD", &network, 102, "bpf/margay");
    assert_not_ready(&network, "write to");

    drop(read_only);
    let result = pod.add(&network);
    assert_only(&node, &[(&pod, &result)], "writable again");
    pod.del(&network);
}

#[test]
fn without_a_bpf_file_system_nothing_is_left_where_it_should_be() {
    let Some(node) = Node::new() else { return };
    let mut network = node.network();
    network["bpffs_root"] = json!(node.path("nowhere/margay"));
    let pod = node.sandbox("a");

    assert_refused(&pod, "ADD", &network, 102, "not on a BPF file system");
    assert_not_ready(&network, "mount -t bpf");
    pod.del(&network);

    assert!(!node.path("nowhere").exists());
    assert_only(&node, &[], "no BPF file system");
}

fn assert_refused(pod: &Pod<'_>, verb: &str, network: &Value, code: u64, part: &str) {
    let (found, message) = pod.invocation(verb, network).execute().error();
    assert_eq!(found, code, "{verb}: {message}");
    assert!(message.contains(part), "{verb}: {message}");
}

fn assert_not_ready(network: &Value, part: &str) {
    let (code, message) = Invocation::new("margay", "STATUS", network).execute().error();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains(part), "{message}");
}

/// A small file system of its own for the state directory.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn new(node: &Node) -> Self {
        let path = node.path("state");
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(c"size=2m")).unwrap();
        Self { path }
    }

    /// Fills it to the last byte, until what is returned is dropped.
    fn fill(&self) -> Ballast {
        let path = self.path.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        let full = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        Ballast { path }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory that is read-only in the node's mount namespace until this is dropped.
struct ReadOnly {
    path: PathBuf,
}

impl ReadOnly {
    fn new(path: PathBuf) -> Self {
        mount_bind(&path, &path).unwrap();
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(&path, flags, c"").unwrap();
        assert!(fs::write(probe(&path), "").is_err(), "{} is writable", path.display());
        Self { path }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn probe(path: &Path) -> PathBuf {
    path.join("probe")
}
