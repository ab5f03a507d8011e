//! What is the same for every command: colours, completion, manual pages.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use margay_tests::Node;
use margay_tests::ctl::Ctl;
use margay_tests::node::plugin_directory;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const COLOUR: &str = "\u{1b}[";

#[test]
fn colours_are_for_terminals_and_for_nobody_who_wants_none() {
    let Some(node) = Node::new() else { return };
    let network = node.network();
    let ctl = Ctl::new(&node, &network);
    let pod = node.sandbox("a");
    pod.add(&network);
    let list = ["endpoint", "list"];

    assert!(!ctl.text(&list).contains(COLOUR), "a pipe");
    let on_terminal = on_terminal(ctl.command(&list).env("TERM", "xterm").env_remove("NO_COLOR"));
    assert!(on_terminal.contains(COLOUR), "{on_terminal:?}");
    let unwanted = self::on_terminal(ctl.command(&list).env("TERM", "xterm").env("NO_COLOR", "1"));
    assert!(unwanted.contains("10.244.0.") && !unwanted.contains(COLOUR), "{unwanted:?}");
    let document = self::on_terminal(ctl.command(&list).args(["-o", "json"]).env("TERM", "xterm"));
    assert!(!document.contains(COLOUR), "{document:?}");
}

#[test]
fn every_shell_completes_every_command() {
    let commands = commands();
    assert!(commands.iter().any(|command| command == "endpoint"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(margayctl().args(["completion", shell]));
        for command in &commands {
            assert!(script.contains(command), "{shell} does not complete {command}");
        }
    }
    let bash = succeed(margayctl().args(["completion", "bash"]));
    succeed(Command::new("bash").args(["-n", "-c", &bash]));
}

#[test]
fn every_command_has_a_manual_page() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("man1");

    succeed(margayctl().arg("man").arg(&folder));

    for command in commands() {
        let page = fs::read_to_string(folder.join(format!("margayctl-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME"), "{command}: {page}");
    }
    let page = fs::read_to_string(folder.join("margayctl.1")).unwrap();
    assert!(page.contains("margayctl 0."), "{page}");
}

#[test]
fn a_pipe_that_is_closed_is_no_failure() {
    let mut child =
        margayctl().args(["completion", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());

    assert!(child.wait().unwrap().success());
}

/// As `--help` lists them.
fn commands() -> Vec<String> {
    let help = succeed(margayctl().arg("--help"));
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.map_while(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn margayctl() -> Command {
    Command::new(plugin_directory().join("margayctl"))
}

fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command prints on a terminal.
fn on_terminal(command: &mut Command) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let end: OwnedFd =
        rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut child = command.stdout(end).stderr(Stdio::null()).spawn().unwrap();
    // The command's end of the terminal is its own and this one's.
    command.stdout(Stdio::null());
    let mut shown = Vec::new();
    let mut terminal = File::from(terminal);
    let mut buffer = [0; 4096];
    // Reading ends with an error where the last end is closed.
    while let Ok(read @ 1..) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..read]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}
