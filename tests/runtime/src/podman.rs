//! A private podman on a node, with CNI as its network back end, and containers that it makes.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use margay::netns::Netns;
use margay_datastore::Attachment;
use margay_tests::node::{plugin_directory, reference_plugin_directory};
use margay_tests::traffic::Place;
use margay_tests::{Node, requirements};
use serde_json::{Value, json};

use crate::image;
use crate::machine::{Machine, show_end_of, wait_until};

/// The network configuration that a host installs.
const CONFLIST: &str = include_str!("../../../conf/10-margay.conflist");
/// Name of the network that `residue` of the harness looks for, and that containers are on unless
/// they ask for another.
const NETWORK: &str = "podnet";

/// A podman with margay as its network. Its own files are where it keeps them by default, in
/// `/run` and `/var/lib`, which are the node's.
#[derive(Debug)]
pub struct Podman<'node> {
    node: &'node Node,
    machine: Machine,
}

impl<'node> Podman<'node> {
    /// Configures one on a node, and imports an image; or records a skip where the machine's podman
    /// has no CNI back end.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn install(node: &'node Node) -> Option<Self> {
        let podman = Self { node, machine: Machine::prepare(node) };
        podman.install_plugins();
        fs::create_dir(podman.networks()).expect("make a directory");
        podman.install_network(NETWORK, &node.network()["ipam"]["pools"]);
        podman.configure();
        if !podman.has_cni() {
            requirements::skip("needs a podman with the CNI back end, as versions up to 4 have it");
            return None;
        }
        podman.import_image();
        Some(podman)
    }

    /// The node that it runs on.
    #[must_use]
    pub fn node(&self) -> &'node Node {
        self.node
    }

    /// Writes the network configuration of `conf/` under this name. What differs from a host's are
    /// directories, the node's name and the pools, and a label, as podman keeps them.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn install_network(&self, name: &str, pools: &Value) {
        let wanted = self.node.network();
        let mut list: Value = serde_json::from_str(CONFLIST).expect("JSON");
        list["name"] = name.into();
        list["args"] = json!({"podman_labels": {"made-by": "hand"}});
        let margay = &mut list["plugins"][0];
        for key in ["nodename", "state_dir", "run_dir", "bpffs_root"] {
            margay[key] = wanted[key].clone();
        }
        margay["log_file_path"] = self.log().to_str().into();
        margay["ipam"]["pools"] = pools.clone();
        let file = self.networks().join(format!("{name}.conflist"));
        fs::write(file, list.to_string()).expect("conflist");
    }

    /// Executes podman and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.try_run(arguments);
        output.unwrap_or_else(|error| panic!("podman {arguments:?}: {error}"))
    }

    /// Executes podman where it may fail; then with what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("podman")
            .args(arguments)
            .env("CONTAINERS_CONF", self.node.path("containers.conf"))
            .env("STORAGE_DRIVER", "vfs")
            .stdin(Stdio::null())
            .output()
            .expect("no podman: `cargo xtask setup` installs it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stdout) + &text(&output.stderr)),
        }
    }

    /// Starts a container of this name that runs an applet of busybox.
    ///
    /// # Panics
    /// When podman does not.
    #[must_use]
    pub fn start(&self, name: &str, options: &[&str], applet: &[&str]) -> Container<'_> {
        let started = self.try_start(name, options, applet);
        started.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The same where podman may refuse.
    ///
    /// # Errors
    /// What podman says.
    pub fn try_start(
        &self,
        name: &str,
        options: &[&str],
        applet: &[&str],
    ) -> Result<Container<'_>, String> {
        let cgroup = self.machine.cgroup_parent();
        let run = ["run", "--detach", "--name", name, "--cgroup-parent", &cgroup];
        let id = self.try_run(&[run.as_slice(), options, &[image::NAME], applet].concat())?;
        Ok(Container { podman: self, name: name.to_owned(), id: id.trim().to_owned() })
    }

    /// What a reboot does to a node: every process ends, and with them the containers' namespaces;
    /// `/run`, the BPF file system and the plugin's run directory are empty; the boot ID is another
    /// one.
    ///
    /// # Panics
    /// When something does not end.
    pub fn reboot(&self) {
        assert!(self.machine.kill_all(), "every process ends");
        self.machine.empty_run();
        wait_until("the links have gone with the namespaces", || {
            self.node.pod_links().is_empty().then_some(())
        });
        self.node.reboot();
    }

    fn networks(&self) -> PathBuf {
        self.node.path("net.d")
    }

    fn log(&self) -> PathBuf {
        self.node.path("cni.log")
    }

    fn install_plugins(&self) {
        let directory = self.node.path("cni-bin");
        fs::create_dir(&directory).expect("make a directory");
        let ours = plugin_directory();
        let reference = reference_plugin_directory();
        for (place, name) in [(&ours, "margay"), (&ours, "margay-ipam"), (&reference, "portmap")] {
            std::os::unix::fs::symlink(place.join(name), directory.join(name))
                .expect("link a plugin");
        }
    }

    /// The settings that a host needs, and what a machine without CAP_SYS_RESOURCE and without
    /// systemd does.
    fn configure(&self) {
        let path = |path: &Path| path.display().to_string();
        let settings = format!(
            r#"
[network]
network_backend = "cni"
cni_plugin_dirs = [{:?}]
network_config_dir = {:?}
default_network = "{NETWORK}"

[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#,
            path(&self.node.path("cni-bin")),
            path(&self.networks()),
        );
        fs::write(self.node.path("containers.conf"), settings).expect("configuration");
    }

    fn has_cni(&self) -> bool {
        match self.try_run(&["info", "--format", "{{.Host.NetworkBackend}}"]) {
            Ok(backend) => backend.trim() == "cni",
            Err(error) if error.contains("cni support is not enabled") => false,
            Err(error) => panic!("podman info: {error}"),
        }
    }

    fn import_image(&self) {
        let layer = self.node.path("layer.tar");
        image::write_layer(&layer).expect("write an image");
        let entrypoint = r#"ENTRYPOINT ["/bin/busybox"]"#;
        let layer = layer.to_str().expect("path");
        self.run(&["import", "--quiet", "--change", entrypoint, layer, image::NAME]);
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_end_of(&self.log());
        }
        self.machine.clean_up();
    }
}

/// A container that podman has made.
#[derive(Debug)]
pub struct Container<'podman> {
    podman: &'podman Podman<'podman>,
    name: String,
    id: String,
}

impl Container<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its attachment to a network.
    ///
    /// # Panics
    /// When its ID is not one that CNI allows.
    #[must_use]
    pub fn attachment(&self, network: &str, ifname: &str) -> Attachment {
        Attachment::new(network, &self.id, ifname).expect("attachment")
    }

    /// Its attachment to the network that containers are on unless they ask for another.
    #[must_use]
    pub fn default_attachment(&self) -> Attachment {
        self.attachment(NETWORK, "eth0")
    }

    /// What `podman inspect` shows of it.
    ///
    /// # Panics
    /// When podman does not know it.
    #[must_use]
    pub fn inspect(&self) -> Value {
        let shown = self.podman.run(&["inspect", "--type", "container", &self.name]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        shown[0].clone()
    }

    /// Its addresses on a network, IPv4 first, as `podman inspect` shows them. None while it does
    /// not run.
    #[must_use]
    pub fn ips_on(&self, network: &str) -> Vec<IpAddr> {
        let network = &self.inspect()["NetworkSettings"]["Networks"][network];
        let shown = ["IPAddress", "GlobalIPv6Address"].map(|key| network[key].as_str());
        shown.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
    }

    /// Its addresses on the network that containers are on unless they ask for another.
    #[must_use]
    pub fn ips(&self) -> Vec<IpAddr> {
        self.ips_on(NETWORK)
    }

    /// Executes an applet of busybox in it and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn exec(&self, applet: &[&str]) -> String {
        let output = self.try_exec(applet);
        output.unwrap_or_else(|error| panic!("{applet:?} in {}: {error}", self.name))
    }

    /// The same, again and again until it succeeds.
    ///
    /// # Panics
    /// When it does not.
    pub fn exec_until(&self, applet: &[&str]) -> String {
        wait_until(&format!("{applet:?} in {} succeeds", self.name), || self.try_exec(applet).ok())
    }

    fn try_exec(&self, applet: &[&str]) -> Result<String, String> {
        self.podman.try_run(&[&["exec", &self.name, "/bin/busybox"], applet].concat())
    }
}

impl Place for Container<'_> {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.inspect()["NetworkSettings"]["SandboxKey"].as_str().map(PathBuf::from);
        let netns = Netns::open(&path.expect("a namespace")).expect("open a namespace");
        netns.run(work).expect("enter a namespace")
    }
}
