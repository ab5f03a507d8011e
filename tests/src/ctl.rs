//! `margayctl`, executed on a node.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::node::{self, Node};

/// `margayctl` on a node with the networks that were installed there.
#[derive(Debug)]
pub struct Ctl<'n> {
    node: &'n Node,
}

/// What it printed, and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl<'n> Ctl<'n> {
    /// With this network installed.
    ///
    /// # Panics
    /// When its configuration cannot be written.
    #[must_use]
    pub fn new(node: &'n Node, network: &Value) -> Self {
        let ctl = Self { node };
        fs::create_dir_all(ctl.conf_dir()).expect("make the folder of configurations");
        ctl.install(network);
        ctl
    }

    /// Installs a network, as a list of one plugin.
    ///
    /// # Panics
    /// When its configuration cannot be written.
    pub fn install(&self, network: &Value) {
        let (name, version) = (&network["name"], &network["cniVersion"]);
        let list = json!({"cniVersion": version, "name": name, "plugins": [network]});
        let file = format!("10-{}.conflist", name.as_str().expect("a network's name"));
        fs::write(self.conf_dir().join(file), list.to_string()).expect("write the configuration");
    }

    /// Where configurations are.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.node.path("net.d")
    }

    /// The command with these arguments, not yet run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(node::plugin_directory().join("margayctl"));
        command.arg("--config").arg(self.conf_dir());
        command.arg("--agent-config").arg(self.node.path("agent.json"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be run, or prints what is not UTF-8.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Printed {
        let output: Output = self.command(arguments).output().expect("run margayctl");
        Printed {
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
            code: output.status.code().expect("it was not killed"),
        }
    }

    /// What it prints where it succeeds.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn text(&self, arguments: &[&str]) -> String {
        let printed = self.run(arguments);
        assert_eq!(printed.code, 0, "margayctl {arguments:?}: {printed:?}");
        printed.stdout
    }

    /// Its JSON document.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Starts it, for what runs until it is interrupted. Its output is piped.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start margayctl")
    }
}
