//! `margayctl uninstall`, on a node whose files are below a directory, and on one whose files are its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;
use margay_tests::pod::address;
use margay_tests::traffic::assert_ping;
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

#[test]
fn what_was_installed_goes_when_no_pod_is_left() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let root = install(&node);
    let uninstall = ["uninstall", "--root", root.to_str().unwrap(), "--prefix", "/usr"];
    let pod = node.sandbox("a");
    let result = pod.add(&network);

    let refused = ctl.run(&uninstall);

    assert_eq!(refused.code, 1, "{refused:?}");
    let veth = result["interfaces"][0]["name"].as_str().unwrap();
    assert!(refused.stderr.contains("1 pods run on this node"), "{refused:?}");
    assert!(refused.stderr.contains(veth) && refused.stderr.contains("--force"), "{refused:?}");
    assert!(root.join("opt/cni/bin/margay").exists());

    pod.del(&network);
    let done = ctl.text(&uninstall);
    assert!(done.contains("removed"), "{done}");
    for gone in ["opt/cni/bin/margay", "etc/cni/net.d/10-margay.conflist", "usr/lib/margay"] {
        assert!(!root.join(gone).exists(), "{gone} is left");
    }
    let again = ctl.run(&uninstall);
    assert!(again.stderr.contains("nothing was installed with this prefix"), "{again:?}");
}

/// What install.sh would have put there, as far as it matters.
fn install(node: &Node) -> PathBuf {
    let root = node.path("root");
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let own = root.join("usr/lib/margay");
    for folder in [&own, &root.join("opt/cni/bin"), &root.join("etc/cni/net.d")] {
        fs::create_dir_all(folder).unwrap();
    }
    for script in ["uninstall.sh", "paths.sh"] {
        fs::copy(dist.join(script), own.join(script)).unwrap();
    }
    fs::write(root.join("opt/cni/bin/margay"), "").unwrap();
    for place in [root.join("etc/cni/net.d"), own] {
        fs::write(place.join("10-margay.conflist"), "{}").unwrap();
    }
    root
}

/// The paths are the real ones, of a host that is this test's own.
#[test]
fn a_host_that_was_installed_and_served_pods_is_as_it_was_before() {
    let Some(node) = Node::new() else { return };
    own_root(&node);
    let before = files();
    let release = release(&node);
    assert_shown("# ./install.sh", &succeed(Command::new(release.join("install.sh"))));
    let conf: Value = serde_json::from_str(&fs::read_to_string(CONFLIST).unwrap()).unwrap();
    let mut network = conf["plugins"][0].clone();
    (network["name"], network["cniVersion"]) = (conf["name"].clone(), conf["cniVersion"].clone());
    let pod = node.sandbox("a");
    let run = |verb: &str| {
        let invocation = pod.invocation_of("/opt/cni/bin/margay", verb, &network);
        invocation.env("CNI_PATH", "/opt/cni/bin").execute()
    };
    let result = run("ADD").success();
    let margayctl = |arguments: &[&str]| {
        let mut command = Command::new("/usr/local/bin/margayctl");
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(Path::new("/sys/fs/bpf/margay").exists() && Path::new("/run/margay").exists());

    let refused = margayctl(&["uninstall"]);

    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    let veth = result["interfaces"][0]["name"].as_str().unwrap();
    assert!(message.contains(veth) && message.contains("kubectl drain"), "{message}");
    let script = Command::new("/usr/local/lib/margay/uninstall.sh").output().unwrap();
    assert_shown("# /usr/local/lib/margay/uninstall.sh", &text(&script.stderr));
    // With its pod it goes on where it is forced, and that keeps its network.
    let forced = margayctl(&["uninstall", "--force"]);
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    assert_ping(&node, address(&result, true));
    assert!(Path::new("/sys/fs/bpf/margay").exists(), "its programs are found again");
    succeed(Command::new(release.join("install.sh")));
    assert!(run("DEL").is_success());

    let edited = fs::read_to_string(CONFLIST).unwrap() + "\n";
    fs::write(CONFLIST, &edited).unwrap();
    let done = margayctl(&["uninstall"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_shown("# /usr/local/lib/margay/uninstall.sh", &text(&done.stdout));
    succeed(Command::new(release.join("install.sh")));
    assert_eq!(fs::read_to_string(CONFLIST).unwrap(), edited);
    let purged = margayctl(&["uninstall", "--purge"]);

    assert!(purged.status.success(), "{}", text(&purged.stderr));
    assert!(text(&purged.stdout).contains("removed /var/lib/margay"), "{purged:?}");
    assert_eq!(files(), before);
    assert_eq!(node.pod_links(), []);
}

/// That one of the places where the page shows this command shows nothing but what was printed.
#[track_caller]
fn assert_shown(command: &str, printed: &str) {
    let printed: Vec<&str> = printed.lines().collect();
    let page = include_str!("../../docs/install.md");
    let begin = format!("```console\n{command}\n");
    let mut places = page.split(&begin).skip(1);
    let is_it = |place: &str| {
        let lines = place.lines().take_while(|line| *line != "```");
        lines.filter(|line| *line != "…").all(|line| printed.contains(&line))
    };
    assert!(places.any(is_it), "{command} prints {printed:#?}");
}

const CONFLIST: &str = "/etc/cni/net.d/10-margay.conflist";
/// What an install, or a pod, writes into.
const PLACES: [&str; 6] = ["/etc", "/opt", "/usr/local", "/var/lib", "/var/log", "/run"];

/// From here on this thread, and what it starts, has the machine's files to read and its own to write. There is no
/// `/run` of the machine's, and so no systemd to talk to.
fn own_root(node: &Node) {
    for place in &PLACES[..5] {
        let of_place = |name: &str| node.path(&format!("own{place}/{name}"));
        let (upper, work) = (of_place("upper"), of_place("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        let (upper, work) = (upper.display(), work.display());
        let layers = format!("lowerdir={place},upperdir={upper},workdir={work}");
        let layers = std::ffi::CString::new(layers).unwrap();
        mount("overlay", *place, "overlay", MountFlags::empty(), Some(layers.as_c_str())).unwrap();
    }
    mount("run", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
}

/// Every file that was written since, or is there no more.
fn files() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders: Vec<PathBuf> =
        ["/etc/cni", "/etc/margay", "/opt", "/usr/local/bin", "/usr/local/sbin", "/usr/local/lib"]
            .iter()
            .chain(&[
                "/usr/local/share",
                "/var/lib/margay",
                "/var/log/margay",
                "/run",
                "/sys/fs/bpf",
            ])
            .map(PathBuf::from)
            .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // An empty folder is nothing that anybody would miss.
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(files.insert(entry.path())),
            }
        }
    }
    files
}

/// What a tarball unpacks to, with the executables under test.
fn release(node: &Node) -> PathBuf {
    let (release, workspace) =
        (node.path("release"), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    for folder in ["bin", "conf", "man", "completions"] {
        fs::create_dir_all(release.join(folder)).unwrap();
    }
    for script in ["install.sh", "uninstall.sh", "paths.sh"] {
        fs::copy(workspace.join("dist").join(script), release.join(script)).unwrap();
    }
    for file in ["margay-boot.service", "margay-agent.service", "agent.json", "10-margay.conflist"]
    {
        fs::copy(workspace.join("conf").join(file), release.join("conf").join(file)).unwrap();
    }
    for name in ["margay", "margay-agent", "margayctl"] {
        // Not by this process: what another thread starts meanwhile would hold the file open for writing.
        let built = plugin_directory().join(name);
        node.run(&["cp", built.to_str().unwrap(), release.join("bin").to_str().unwrap()]);
    }
    let margayctl = || Command::new(release.join("bin/margayctl"));
    let mut man = margayctl();
    man.arg("man").arg(release.join("man"));
    succeed(man);
    for shell in ["bash", "zsh", "fish"] {
        let mut completion = margayctl();
        completion.args(["completion", shell]);
        let file = release.join(format!("completions/margayctl.{shell}"));
        fs::write(file, succeed(completion)).unwrap();
    }
    release
}

fn succeed(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
