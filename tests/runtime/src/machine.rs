//! What a runtime takes for the machine: the paths that it insists on, control groups, and the
//! processes that it leaves running when it ends.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use margay_tests::Node;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// How long a runtime, a process or the kernel may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` and `TMPFS_MAGIC` of `linux/magic.h`: the one hierarchy of version 2, or a
/// directory of those of version 1.
const CGROUP_MAGICS: [rustix::fs::FsWord; 2] = [0x6367_7270, 0x0102_1994];

/// A node's own `/run` and `/var/lib`, its control group, and every process that the runtime on it
/// has started.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Name of the node's control group in every hierarchy.
    cgroup: String,
}

impl Machine {
    /// Gives the calling thread's mount namespace directories of its own where a runtime keeps
    /// things at paths that no setting changes: shims listen in `/run/containerd/s`, and libcni
    /// remembers results in `/var/lib/cni`.
    pub(crate) fn prepare(node: &Node) -> Self {
        let var_lib = node.path("var-lib");
        fs::create_dir(&var_lib).expect("make a directory");
        mount_bind(&var_lib, "/var/lib").expect("mount /var/lib");
        // podman keeps its locks there, the same for every podman of a machine.
        mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), None).expect("mount /dev/shm");
        mount_run();
        ensure_cgroups();
        let unique = node.directory().file_name().expect("name of the node's directory");
        Self { cgroup: unique.to_str().expect("UTF-8").to_owned() }
    }

    /// The control group that pods are to be put in, as a path below every hierarchy.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// Empties `/run`, as a reboot does. Namespaces that are mounted there go with it.
    pub(crate) fn empty_run(&self) {
        unmount("/run", UnmountFlags::DETACH).expect("unmount /run");
        mount_run();
    }

    /// Kills what the runtime has started: what has the node's mount namespace (shims), and what is
    /// in its control group (what runs in pods). Says whether all of it has ended.
    #[must_use]
    pub(crate) fn kill_all(&self) -> bool {
        let ended = look_until(|| {
            let processes = self.processes();
            for pid in processes.iter().copied().filter_map(Pid::from_raw) {
                // One that has ended meanwhile is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            processes.is_empty().then_some(())
        });
        ended.is_some()
    }

    fn processes(&self) -> BTreeSet<i32> {
        let ours = fs::read_link("/proc/thread-self/ns/mnt").expect("mount namespace");
        let numbered = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
        let all = fs::read_dir("/proc").expect("/proc").flatten().filter_map(numbered);
        let myself = std::process::id().cast_signed();
        // The test's own process is where its main thread is: elsewhere.
        let here = |pid: &i32| {
            let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt"));
            *pid != myself && namespace.is_ok_and(|namespace| namespace == ours)
        };
        let mut processes: BTreeSet<i32> = all.filter(here).collect();
        for group in self.cgroups() {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            processes.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        processes
    }

    /// The node's control group and those below it, in every hierarchy, children first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = directories(Path::new(CGROUPS)).into_iter();
        let places = hierarchies.chain([PathBuf::from(CGROUPS)]);
        let mut groups = Vec::new();
        for group in places.map(|place| place.join(&self.cgroup)).filter(|group| group.is_dir()) {
            add_with_children(&group, &mut groups);
        }
        groups
    }

    /// Ends everything that was begun for the node. Complains rather than panics, which would hide
    /// why the test ended.
    pub(crate) fn clean_up(&self) {
        if !self.kill_all() {
            eprintln!("processes of the node run on: {:?}", self.processes());
        }
        for group in self.cgroups() {
            if let Err(error) = fs::remove_dir(&group) {
                eprintln!("{} stays behind: {error}", group.display());
            }
        }
        for path in ["/run", "/var/lib"] {
            if let Err(error) = unmount(path, UnmountFlags::DETACH) {
                eprintln!("{path} stays mounted: {error}");
            }
        }
    }
}

/// Looks until there is something to be found.
///
/// # Panics
/// When there is not, in time.
pub fn wait_until<T>(state: &str, look: impl FnMut() -> Option<T>) -> T {
    look_until(look).unwrap_or_else(|| panic!("not in time: {state}"))
}

fn look_until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Shows what a test that failed may have failed of.
pub(crate) fn show_end_of(log: &Path) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(60)..].join("\n");
    eprintln!("the end of {}:\n{end}", log.display());
}

fn mount_run() {
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), Some(c"mode=755")).expect("mount /run");
}

/// Mounts the kernel's control groups where nobody has, as in a bare change of root: as a process
/// finds itself in them.
fn ensure_cgroups() {
    let mounted = statfs(CGROUPS).expect("/sys/fs/cgroup").f_type;
    if CGROUP_MAGICS.contains(&mounted) {
        return;
    }
    let membership = fs::read_to_string("/proc/self/cgroup").expect("control groups");
    let controllers: Vec<&str> = membership
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|c| !c.is_empty())
        .collect();
    if controllers.is_empty() {
        mount("cgroup", CGROUPS, "cgroup2", MountFlags::empty(), None).expect("mount cgroup2");
        return;
    }
    mount("cgroup", CGROUPS, "tmpfs", MountFlags::empty(), None).expect("mount a tmpfs");
    for controller in controllers {
        let place = Path::new(CGROUPS).join(controller.replace("name=", ""));
        fs::create_dir(&place).expect("make a directory");
        let mut options = controller.as_bytes().to_vec();
        if controller.starts_with("name=") {
            options = [b"none,", options.as_slice()].concat();
        }
        let options = std::ffi::CString::new(options).expect("name of a controller");
        mount("cgroup", &place, "cgroup", MountFlags::empty(), Some(options.as_c_str()))
            .expect("mount a hierarchy of control groups");
    }
}

fn add_with_children(group: &Path, groups: &mut Vec<PathBuf>) {
    for child in directories(group) {
        add_with_children(&child, groups);
    }
    groups.push(group.to_owned());
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}
