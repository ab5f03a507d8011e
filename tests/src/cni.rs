//! A plugin executed as a runtime does it: the request in the environment, the configuration on
//! standard input, the answer on standard output.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::node;
use crate::traffic::PATIENCE;

/// A plugin's execution to come.
#[derive(Clone, Debug)]
pub struct Invocation {
    plugin: String,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    stdin: Vec<u8>,
}

impl Invocation {
    /// An execution of `plugin` (a name beside the tests, or an absolute path) for a verb.
    #[must_use]
    pub fn new(plugin: &str, verb: &str, config: &Value) -> Self {
        let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), verb.to_owned())]);
        let stdin = config.to_string().into_bytes();
        Self { plugin: plugin.to_owned(), arguments: Vec::new(), environment, stdin }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Executes this program in the plugin's place, with these arguments and the plugin's path.
    #[must_use]
    pub fn through(mut self, program: &str, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self.arguments.push(executable(&self.plugin).display().to_string());
        program.clone_into(&mut self.plugin);
        self
    }

    /// Leaves a variable out.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Sends these bytes in place of the configuration.
    #[must_use]
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        bytes.clone_into(&mut self.stdin);
        self
    }

    /// Executes it in the calling thread's namespaces and waits.
    pub fn execute(&self) -> CniOutput {
        CniOutput { output: self.start().wait_with_output().expect("wait for the plugin") }
    }

    /// Executes it without waiting.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self) -> Child {
        self.start_held().go_on()
    }

    /// Executes it without waiting, and lets it come as far as its configuration, whose end it has
    /// to wait for.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_held(&self) -> Held {
        let mut child = Command::new(executable(&self.plugin))
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the plugin");
        let mut stdin = child.stdin.take().expect("stdin");
        // A plugin that refuses the environment need not read its input.
        if let Err(error) = stdin.write_all(&self.stdin) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
        }
        Held { child, stdin }
    }
}

/// A plugin that has got its configuration, but for the end of the file.
#[derive(Debug)]
pub struct Held {
    child: Child,
    stdin: ChildStdin,
}

impl Held {
    /// Waits until it has begun to read.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_it_reads(&self) {
        let deadline = Instant::now() + PATIENCE;
        while rustix::io::ioctl_fionread(&self.stdin).expect("look into the pipe") > 0 {
            assert!(Instant::now() < deadline, "it does not read its configuration");
            std::thread::yield_now();
        }
    }

    /// Lets it go on.
    pub fn go_on(self) -> Child {
        self.child
    }

    /// Sends the rest of the configuration and lets it go on.
    ///
    /// # Panics
    /// When it is gone.
    pub fn go_on_with(mut self, rest: &Value) -> Child {
        self.stdin.write_all(rest.to_string().as_bytes()).expect("send the configuration");
        self.child
    }
}

/// A configuration with what a runtime puts into it for a pod whose bandwidth is limited, in bits
/// per second; 0 is no limit.
#[must_use]
pub fn with_bandwidth(network: &Value, to_pod_bits: u64, from_pod_bits: u64) -> Value {
    let mut network = network.clone();
    network["capabilities"] = json!({"bandwidth": true});
    network["runtimeConfig"] = json!({"bandwidth": {
        "ingressRate": to_pod_bits, "ingressBurst": 0,
        "egressRate": from_pod_bits, "egressBurst": 0,
    }});
    network
}

fn executable(plugin: &str) -> PathBuf {
    let path = Path::new(plugin);
    if path.is_absolute() { path.to_owned() } else { node::plugin_directory().join(path) }
}

/// What a plugin answered.
#[derive(Clone, Debug)]
pub struct CniOutput {
    output: Output,
}

impl CniOutput {
    /// From a child that [`Invocation::start`] started.
    #[must_use]
    pub fn of(child: Child) -> Self {
        Self { output: child.wait_with_output().expect("wait for the plugin") }
    }

    /// How the process ended.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        self.output.status
    }

    /// Whether the exit code is 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.output.status.success()
    }

    /// The exit code; `None` where a signal ended it.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// The answer of a verb that succeeded; null where the verb has none.
    ///
    /// # Panics
    /// When the verb failed, or what it printed is not JSON.
    pub fn success(&self) -> Value {
        assert!(self.is_success(), "{}\n{}{}", self.output.status, self.stdout(), self.stderr());
        if self.output.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.output.stdout).expect("a JSON answer")
    }

    /// The error of a verb that failed: its code and its message with the details.
    ///
    /// # Panics
    /// When the verb succeeded, did not exit by itself or did not print an error.
    pub fn error(&self) -> (u64, String) {
        assert_eq!(self.output.status.code(), Some(1), "{}{}", self.stdout(), self.stderr());
        let error: Value = serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout(), self.stderr()));
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (error["code"].as_u64().expect("code"), format!("{}; {}", text("msg"), text("details")))
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}
