//! Without root: what the kernel lets one see is shown, and for the rest it says what is missing.

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
