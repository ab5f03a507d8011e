//! A node made of namespaces.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, panic, thread};

use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::object::Build;
use crate::{Datapath, LoadOptions};

/// Set where everything must run: turns a skip into a failure.
const REQUIRE_ALL: &str = "MARGAY_REQUIRE_ALL";
/// Names the file that gets a line for each skip.
const SKIP_LOG: &str = "MARGAY_SKIP_LOG";

/// The host veth of a test.
pub(super) const HOST_VETH: &str = "mgytest";

pub(super) struct Node {
    bpffs: PathBuf,
    pub(super) options: LoadOptions,
    pub(super) build: Build,
    _folder: tempfile::TempDir,
}

/// Runs `test` on a node of its own, or records why it cannot.
pub(super) fn on_a_node(test: impl FnOnce(&Node) + Send) {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    let Ok(build) = Build::embedded() else {
        return skip("needs the BPF object (`cargo xtask build-ebpf`)");
    };
    thread::scope(|scope| {
        let work = || {
            isolate_thread();
            test(&Node::new(build));
        };
        let name = thread::current().name().unwrap_or_default().to_owned();
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, work);
        if let Err(panic) = thread.expect("start a thread").join() {
            panic::resume_unwind(panic);
        }
    });
}

impl Node {
    fn new(build: Build) -> Self {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let bpffs = folder.path().join("bpf");
        fs::create_dir(&bpffs).expect("make the mount point");
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).expect("mount a BPF file system");
        let options =
            LoadOptions { max_pods: 64, max_flows: 1024, lock_dir: folder.path().join("lock") };
        Self { bpffs, options, build, _folder: folder }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.bpffs.join("margay")
    }

    /// Where this version's pins are.
    pub(super) fn pins(&self) -> PathBuf {
        self.root().join(margay_abi::ABI_VERSION.to_string())
    }

    pub(super) fn open(&self) -> Option<Datapath> {
        Datapath::open(&self.root()).expect("open")
    }

    pub(super) fn open_or_load(&self) -> Datapath {
        Datapath::open_or_load(&self.root(), &self.options).expect("open or load")
    }

    /// The same object under another name, as an upgrade brings it.
    pub(super) fn next_build(&self) -> Build {
        Build { id: "next", ..self.build }
    }

    pub(super) fn open_or_load_next_build(&self) -> Datapath {
        Datapath::open_or_load_build(&self.root(), &self.options, self.next_build())
            .expect("open or load another build")
    }

    /// Every file and folder below `folder`, sorted.
    pub(super) fn tree(&self, folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(folder, &mut found);
        found.sort();
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A second mount below a panicking test is of no interest; the namespace takes all with it.
        let _ = unmount(&self.bpffs, UnmountFlags::DETACH);
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("read a folder").path();
        if path.is_dir() {
            walk(&path, found);
        }
        found.push(path);
    }
}

/// Runs `work` with a netlink connection in the node's network namespace.
pub(super) fn with_netlink<T>(work: impl AsyncFnOnce(&Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.expect("make a runtime").block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("open netlink");
        let connection = tokio::spawn(connection);
        let result = work(&handle).await;
        connection.abort();
        result
    })
}

/// Makes a veth pair that is up, and returns the index of [`HOST_VETH`].
pub(super) async fn create_veth(netlink: &Handle) -> u32 {
    let pair = LinkVeth::new(HOST_VETH, "mgypeer").build();
    netlink.link().add(pair).execute().await.expect("create a veth pair");
    for name in [HOST_VETH, "mgypeer"] {
        let up = LinkUnspec::new_with_index(index_of(name)).up().build();
        netlink.link().set(up).execute().await.expect("set a veth up");
    }
    index_of(HOST_VETH)
}

pub(super) async fn delete_veth(netlink: &Handle, ifindex: u32) {
    netlink.link().del(ifindex).execute().await.expect("delete a veth pair");
}

pub(super) fn index_of(name: &str) -> u32 {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)
            .expect("open a socket");
    rustix::net::netdevice::name_to_index(socket, name).expect("look an interface up")
}

fn isolate_thread() {
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("make mounts private");
}

#[expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
fn unshare(flags: UnshareFlags) {
    // SAFETY: CLONE_FILES is not among the flags, so the table of file descriptors stays shared
    // with every other thread.
    unsafe { unshare_unsafe(flags) }.expect("unshare");
}

fn skip(reason: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("test");
    assert!(env::var_os(REQUIRE_ALL).is_none(), "{test} {reason}, and {REQUIRE_ALL} is set");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = env::var_os(SKIP_LOG) {
        let log = OpenOptions::new().create(true).append(true).open(path);
        writeln!(log.expect("open the skip log"), "{test}: {reason}").expect("record the skip");
    }
}
