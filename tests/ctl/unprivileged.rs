//! Without root: what the kernel lets one see is shown, and for the rest it says what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;

const NOBODY: u32 = 65_534;

#[test]
fn what_takes_root_says_so_and_the_rest_works() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let readable = |path: &str| {
        fs::set_permissions(node.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    };
    ["", "net.d"].into_iter().for_each(readable);

    for arguments in [
        ["endpoint", "list"],
        ["ipam", "show"],
        ["pool", "list"],
        ["node", "list"],
        ["datapath", "maps"],
        ["datapath", "counters"],
    ] {
        let output = as_nobody(&node, ctl.command(&arguments));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.contains("this needs root"), "{arguments:?}: {message}");
    }
    for arguments in [vec!["completion", "bash"], vec!["--version"]] {
        assert!(as_nobody(&node, ctl.command(&arguments)).status.success(), "{arguments:?}");
    }
}

#[test]
fn with_a_datastore_that_may_be_read_an_endpoint_is_shown_as_far_as_it_goes() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let open = |path: &str, mode| {
        fs::set_permissions(node.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    open("", 0o755);
    open("net.d", 0o755);
    open("state", 0o777);
    for entry in fs::read_dir(node.path("state")).unwrap().flatten() {
        if entry.path().is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o666)).unwrap();
        }
    }

    let listed = as_nobody(&node, ctl.command(&["endpoint", "list"]));
    let shown = as_nobody(&node, ctl.command(&["endpoint", "show", "a"]));

    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listed.status.success() && text(&listed).contains("10.244.0."), "{listed:?}");
    assert!(shown.status.success(), "{shown:?}");
    let shown = text(&shown);
    assert!(shown.contains("host veth      mgy"), "links are for everybody: {shown}");
    assert!(
        shown.contains("not seen: pod: ") && shown.contains("not seen: map entries"),
        "{shown}"
    );
}

/// Of every command: what it takes besides, what it ends with, and what it then says.
const COMMANDS: [(&str, &str, i32, &str); 29] = [
    ("status", "", 0, "without-root"),
    ("doctor", "", 0, "sudo margayctl doctor"),
    ("endpoint list", "", 1, NEEDS_ROOT),
    ("endpoint show", "a", 1, NEEDS_ROOT),
    ("ipam show", "", 1, NEEDS_ROOT),
    ("ipam check", "--settle 0.1", 1, NEEDS_ROOT),
    ("ipam release", "10.244.0.5", 1, NEEDS_ROOT),
    ("pool list", "", 1, NEEDS_ROOT),
    ("pool create", "10.99.0.0/24", 1, NEEDS_ROOT),
    ("pool enable", "10.244.0.0/24", 1, NEEDS_ROOT),
    ("pool disable", "10.244.0.0/24", 1, NEEDS_ROOT),
    ("pool delete", "10.244.0.0/24", 1, NEEDS_ROOT),
    ("node list", "", 1, NEEDS_ROOT),
    ("node delete", "other --yes --force", 1, NEEDS_ROOT),
    ("datapath maps", "", 1, NEEDS_ROOT),
    ("datapath flows", "", 1, NEEDS_ROOT),
    ("datapath programs", "", 1, NEEDS_ROOT),
    ("datapath counters", "", 1, NEEDS_ROOT),
    ("datapath upgrade", "", 1, NEEDS_ROOT),
    ("datapath upgrade", "--dry-run", 1, NEEDS_ROOT),
    ("datapath unload", "", 1, NEEDS_ROOT),
    ("trace", "a 10.244.0.9", 1, NEEDS_ROOT),
    ("monitor", "", 1, NEEDS_ROOT),
    ("bundle", "OWN/bundle.tar.gz", 0, "bundle.tar.gz"),
    ("bundle", "/proc/bundle.tar.gz", 1, NEEDS_ROOT),
    ("uninstall", "--root OWN/root --prefix /usr --force", 1, NEEDS_ROOT),
    ("completion", "fish", 0, "complete"),
    ("man", "OWN/man", 0, ""),
    ("man", "/proc/man", 1, NEEDS_ROOT),
];
const NEEDS_ROOT: &str = "this needs root: try again with sudo";

#[test]
fn every_command_works_or_says_what_it_lacks_and_what_to_type_next() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let own = node.path("own");
    fs::create_dir_all(own.join("root/usr/lib/margay")).unwrap();
    fs::write(own.join("root/usr/lib/margay/uninstall.sh"), "rm /nowhere").unwrap();
    pod.del(&network);
    pod.add(&network);
    for (path, mode) in [("", 0o755), ("net.d", 0o755), ("own", 0o777)] {
        fs::set_permissions(node.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let plugins = plugin_directory();

    for (command, besides, code, words) in COMMANDS {
        let besides = besides.replace("OWN", own.to_str().unwrap());
        let mut arguments: Vec<&str> =
            command.split(' ').chain(besides.split_whitespace()).collect();
        if ["status", "doctor", "bundle"].contains(&command) {
            arguments.extend(["--bin-dir", plugins.to_str().unwrap()]);
        }
        let output = as_nobody(&node, ctl.command(&arguments));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{command} {besides}: {said}");
        assert!(said.contains(words), "{command} {besides}: {said}");
    }
    assert!(own.join("man/margayctl-endpoint-list.1").exists());
    let known: BTreeSet<&str> = COMMANDS.iter().map(|(command, ..)| *command).collect();
    for page in fs::read_dir(own.join("man")).unwrap().flatten() {
        let name = page.file_name().into_string().unwrap();
        let name = name.trim_start_matches("margayctl").trim_end_matches(".1");
        let command = name.trim_start_matches('-').replace('-', " ");
        let is_of_several = known.iter().any(|known| known.starts_with(&format!("{command} ")));
        let is_tried = known.contains(command.as_str()) || is_of_several || command.is_empty();
        assert!(is_tried, "{command} is not tried");
    }
}

/// Runs it as a user who has nothing, from a copy that he can execute.
fn as_nobody(node: &Node, command: Command) -> Output {
    let copy = node.path("margayctl");
    if !copy.exists() {
        // Not by this process: what another thread starts meanwhile would hold the file open for writing.
        let built = plugin_directory().join("margayctl");
        node.run(&["cp", built.to_str().unwrap(), copy.to_str().unwrap()]);
    }
    let mut command_of_nobody = Command::new(copy);
    command_of_nobody.args(command.get_args()).uid(NOBODY).gid(NOBODY).output().unwrap()
}
