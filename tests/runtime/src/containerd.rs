//! A private containerd on a node: started, killed, started again, and the plugins and network
//! configuration that it finds.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use margay_tests::Node;
use margay_tests::node::{plugin_directory, reference_plugin_directory};
use serde_json::Value;

use crate::cri::{Cri, Empty, ImageSpec, ImageStatusRequest, ImageStatusResponse, StatusResponse};
use crate::image;
use crate::machine::{Machine, show_end_of, wait_until};

/// The network configuration that a host installs.
const CONFLIST: &str = include_str!("../../../conf/10-margay.conflist");
/// The part of containerd's configuration that a host installs.
const DROP_IN: &str = include_str!("../../../conf/containerd-margay.toml");

/// A private containerd with margay as its network.
#[derive(Debug)]
pub struct Containerd<'node> {
    node: &'node Node,
    machine: Machine,
    process: Mutex<Option<Child>>,
    cri: Cri,
}

impl<'node> Containerd<'node> {
    /// Starts one on a node, with the configuration files of `conf/`. What differs from a host's are
    /// directories, names and, if given, pools.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(node: &'node Node, pools: Option<Value>) -> Self {
        let machine = Machine::prepare(node);
        let containerd = Self {
            node,
            machine,
            process: Mutex::new(None),
            cri: Cri::at(PathBuf::from("/run/containerd/containerd.sock")),
        };
        containerd.install_plugins();
        containerd.install_network(pools);
        containerd.configure();
        containerd.launch();
        containerd.import_image();
        containerd
    }

    /// Kills it, as a crash does. What runs in pods, and the shims beside it, stay.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut process = process.expect("containerd runs");
        process.kill().expect("kill containerd");
        process.wait().expect("wait for containerd");
    }

    /// Starts it after it was killed.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn launch(&self) {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("log");
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.node.path("containerd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("no containerd: `cargo xtask setup` installs it");
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        wait_until("containerd is ready", || {
            let answer: Result<StatusResponse, _> = self.cri.runtime("Status", Empty {});
            let conditions = answer.ok()?.status?.conditions;
            (conditions.len() == 2 && conditions.iter().all(|one| one.status)).then_some(())
        });
    }

    /// What a reboot does to a node: every process ends, and with them the pods' namespaces; `/run`,
    /// the BPF file system and the plugin's run directory are empty; the boot ID is another one.
    /// containerd does not run afterwards.
    ///
    /// # Panics
    /// When something does not end.
    pub fn reboot(&self) {
        self.kill();
        assert!(self.machine.kill_all(), "every process ends");
        self.machine.empty_run();
        wait_until("the links have gone with the namespaces", || {
            self.node.pod_links().is_empty().then_some(())
        });
        self.node.reboot();
    }

    /// Puts a plugin in the place of another, as an upgrade does: the new file has a name of its own
    /// until it is whole.
    ///
    /// # Panics
    /// When that fails.
    pub fn replace_plugin(&self, name: &str) {
        let fresh = self.plugins().join(format!(".{name}.new"));
        fs::copy(plugin_directory().join(name), &fresh).expect("copy a plugin");
        fs::rename(&fresh, self.plugins().join(name)).expect("rename a plugin");
    }

    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    pub(crate) fn cgroup_parent(&self) -> String {
        self.machine.cgroup_parent()
    }

    fn plugins(&self) -> PathBuf {
        self.node.path("cni-bin")
    }

    fn networks(&self) -> PathBuf {
        self.node.path("net.d")
    }

    fn log(&self) -> PathBuf {
        self.node.path("containerd.log")
    }

    fn install_plugins(&self) {
        fs::create_dir(self.plugins()).expect("make a directory");
        for name in ["margay", "margay-ipam"] {
            self.replace_plugin(name);
        }
        for name in ["loopback", "portmap"] {
            symlink(reference_plugin_directory().join(name), self.plugins().join(name))
                .expect("link a plugin");
        }
    }

    /// The network that `residue` of the harness looks for, with the node's directories.
    fn install_network(&self, pools: Option<Value>) {
        let wanted = self.node.network();
        let mut list: Value = serde_json::from_str(CONFLIST).expect("JSON");
        list["name"] = wanted["name"].clone();
        let margay = &mut list["plugins"][0];
        for key in ["nodename", "state_dir", "run_dir", "bpffs_root"] {
            margay[key] = wanted[key].clone();
        }
        margay["log_file_path"] = self.node.path("cni.log").to_str().into();
        if let Some(pools) = pools {
            margay["ipam"]["pools"] = pools;
        }
        fs::create_dir(self.networks()).expect("make a directory");
        fs::write(self.networks().join("10-margay.conflist"), list.to_string()).expect("conflist");
    }

    /// The drop-in with the node's directories, and what a machine without registry, overlay and
    /// CAP_SYS_RESOURCE needs.
    fn configure(&self) {
        let drop_in = replaced(DROP_IN, "\"/opt/cni/bin\"", &format!("{:?}", self.plugins()));
        let drop_in = replaced(&drop_in, "\"/etc/cni/net.d\"", &format!("{:?}", self.networks()));
        let rest = format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
"#,
            image::NAME
        );
        fs::write(self.node.path("containerd.toml"), drop_in + &rest).expect("configuration");
    }

    fn import_image(&self) {
        let archive = self.node.path("image.tar");
        image::write(&archive).expect("write an image");
        let archive = archive.to_str().expect("path");
        let import = ["ctr", "--namespace", "k8s.io", "images", "import"];
        self.node.run(&[import.as_slice(), &["--snapshotter", "native", archive]].concat());
        // The CRI service learns of it by an event.
        wait_until("the image is known", || {
            let image = Some(ImageSpec { image: image::NAME.to_owned() });
            let answer = self.cri.image("ImageStatus", ImageStatusRequest { image });
            answer.ok().and_then(|answer: ImageStatusResponse| answer.image)
        });
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in [self.log(), self.node.path("cni.log")] {
                show_end_of(&log);
            }
        }
        if let Some(mut process) =
            self.process.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let ended = process.kill().and_then(|()| process.wait());
            if let Err(error) = ended {
                eprintln!("containerd runs on: {error}");
            }
        }
        self.machine.clean_up();
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from} in the configuration");
    text.replace(from, to)
}
