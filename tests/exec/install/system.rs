//! A system below a root, to install on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use margay_tests::node::plugin_directory;
use margay_tests::{CniOutput, Invocation, Node, Pod};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use super::{CONFLIST, PINS, PLUGIN, SHIPPED_AGENT_CONF, SHIPPED_CONFLIST, WORKSPACE};

/// A system below a root, with files of others on it, and what a tarball unpacks to.
pub(super) struct System<'node> {
    node: &'node Node,
    pub(super) root: PathBuf,
    tarball: PathBuf,
}

impl Drop for System<'_> {
    fn drop(&mut self) {
        unmount(self.path("sys/fs/bpf"), UnmountFlags::DETACH).unwrap();
    }
}

impl<'node> System<'node> {
    pub(super) fn new(node: &'node Node) -> Self {
        let system = Self { node, root: node.path("root"), tarball: node.path("tarball") };
        system.make_tarball();
        for folder in ["sys/fs/bpf", "run", "var/lib/other", "opt/cni/bin", "etc/cni/net.d"] {
            fs::create_dir_all(system.path(folder)).unwrap();
        }
        for file in ["var/lib/other/state", "opt/cni/bin/portmap", "etc/cni/net.d/99-other.conf"] {
            fs::write(system.path(file), "of another").unwrap();
        }
        mount("bpf", system.path("sys/fs/bpf"), "bpf", MountFlags::empty(), None).unwrap();
        system
    }

    /// As `cargo xtask dist` puts it together, but for the plugin and margayctl, which are those under test, the
    /// agent, which nothing starts here, and the network, which has its directories below the root.
    fn make_tarball(&self) {
        for folder in ["bin", "conf", "man", "completions"] {
            fs::create_dir_all(self.shipped(folder)).unwrap();
        }
        for script in ["install.sh", "uninstall.sh", "paths.sh"] {
            let from = Path::new(WORKSPACE).join("dist").join(script);
            fs::copy(from, self.shipped(script)).unwrap();
        }
        for file in ["conf/margay-boot.service", "conf/margay-agent.service", SHIPPED_AGENT_CONF] {
            fs::copy(Path::new(WORKSPACE).join(file), self.shipped(file)).unwrap();
        }
        for file in ["man/margayctl.1", "man/margayctl-endpoint.1"] {
            fs::write(self.shipped(file), file).unwrap();
        }
        for shell in ["bash", "zsh", "fish"] {
            fs::write(self.shipped(&format!("completions/margayctl.{shell}")), shell).unwrap();
        }
        let ctl = plugin_directory().join("margayctl");
        fs::copy(ctl, self.shipped("bin/margayctl")).unwrap();
        self.ship_version(0);
    }

    /// What is shipped gets other contents with another version.
    pub(super) fn ship_version(&self, version: u32) {
        let mut plugin = fs::read(plugin_directory().join("margay")).unwrap();
        plugin.extend(version.to_be_bytes());
        fs::write(self.shipped("bin/margay"), plugin).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.shipped("bin/margay"), mode).unwrap();

        let mut network = self.node.network();
        network["state_dir"] = json!(self.path("var/lib/margay"));
        network["run_dir"] = json!(self.path("run/margay"));
        network["bpffs_root"] = json!(self.path(PINS));
        network["max_pods"] = json!(1000 + version);
        network["ipam"]["pools"][0]["nat_outgoing"] = json!(true);
        let list = json!({"cniVersion": "1.1.0", "name": "podnet", "plugins": [network]});
        fs::write(self.shipped(SHIPPED_CONFLIST), list.to_string()).unwrap();
        fs::write(self.shipped("bin/margay-agent"), version.to_be_bytes()).unwrap();
        for file in ["conf/margay-boot.service", "conf/margay-agent.service", SHIPPED_AGENT_CONF] {
            let file = self.shipped(file);
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, format!("{text}# {version}\n")).unwrap();
        }
    }

    pub(super) fn install(&self, options: &[&str]) -> String {
        succeed(self.script("install.sh", options).output().unwrap())
    }

    pub(super) fn uninstall(&self, options: &[&str]) -> String {
        succeed(self.script("uninstall.sh", options).output().unwrap())
    }

    /// Whether an install came to its end that would have been killed before the rename after so
    /// many of them.
    pub(super) fn install_killed_after(&self, renames: usize) -> bool {
        let folder = self.node.path("mv");
        fs::create_dir_all(&folder).unwrap();
        let (count, script) = (folder.join("count"), folder.join("mv"));
        fs::write(&count, "").unwrap();
        let text = format!(
            "#!/bin/sh\n[ $(wc -c <{0}) = {renames} ] && kill -KILL $PPID\nprintf x >>{0}\n\
             PATH=${{PATH#*:}} exec mv \"$@\"\n",
            count.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());

        let output = self.script("install.sh", &[]).env("PATH", path).output().unwrap();

        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || output.status.code().is_none(), "{message}");
        output.status.success()
    }

    pub(super) fn script(&self, name: &str, options: &[&str]) -> Command {
        let mut command = Command::new(self.shipped(name));
        command.arg("--root").arg(&self.root).args(options).stdin(Stdio::null());
        command
    }

    /// The configuration that a runtime would send.
    pub(super) fn network(&self) -> Value {
        let list: Value = serde_json::from_slice(&self.read(CONFLIST)).unwrap();
        let mut network = list["plugins"][0].clone();
        network["name"] = list["name"].clone();
        network["cniVersion"] = list["cniVersion"].clone();
        network
    }

    pub(super) fn plugin(&self) -> String {
        self.path(PLUGIN).to_str().unwrap().to_owned()
    }

    pub(super) fn run(&self, pod: &Pod<'_>, verb: &str, network: &Value) -> CniOutput {
        self.execute(&pod.invocation_of(&self.plugin(), verb, network))
    }

    pub(super) fn execute(&self, invocation: &Invocation) -> CniOutput {
        invocation.clone().env("CNI_PATH", self.path("opt/cni/bin").to_str().unwrap()).execute()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn shipped(&self, name: &str) -> PathBuf {
        self.tarball.join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Every file below the root and what is in it, or where it points.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.root, &mut files);
        files
    }

    /// The paths of those that no verb makes.
    pub(super) fn installed(&self) -> Vec<PathBuf> {
        let made_by_verbs = ["sys", "run", "var"].map(|folder| self.path(folder));
        let by_verb = |file: &PathBuf| made_by_verbs.iter().any(|folder| file.starts_with(folder));
        self.files().into_keys().filter(|file| !by_verb(file)).collect()
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            files.insert(path, target.into_os_string().into_encoded_bytes());
        } else {
            // Pins cannot be read.
            let content = fs::read(&path).unwrap_or_default();
            files.insert(path, content);
        }
    }
}

pub(super) fn succeed(output: Output) -> String {
    let shown = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", shown(&output.stdout), shown(&output.stderr));
    shown(&output.stdout)
}
