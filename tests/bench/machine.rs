//! Where, when and of what versions something was measured.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use margay_tests::node::{plugin_directory, reference_plugin_directory};
use serde::{Deserialize, Serialize};

/// What makes numbers comparable, or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    /// Load average of 1, 5 and 15 minutes before the measurement.
    pub(crate) load: String,
    pub(crate) margay: String,
    pub(crate) peers: Vec<String>,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let load = read("/proc/loadavg");
        let load = load.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        Self {
            date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib(&field("/proc/meminfo", "MemTotal")) / 1024,
            load,
            margay: margay(),
            peers: ["ptp", "bridge", "host-local"].map(peer).into(),
        }
    }
}

/// The commit, and whether it is what was built.
fn margay() -> String {
    let git = |arguments: &[&str]| {
        let folder = ["-C", env!("CARGO_MANIFEST_DIR")];
        output("git", &[folder.as_slice(), arguments].concat())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    let directory = plugin_directory();
    let build = directory.file_name().unwrap_or_default().display();
    let changed = if changes.is_empty() { "" } else { " with changes" };
    format!("{} {commit}{changed}, {build} build", env!("CARGO_PKG_VERSION"))
}

/// What a reference plugin says of itself when it is executed by hand, and the package of the
/// distribution that it came in.
fn peer(name: &str) -> String {
    let path = reference_plugin_directory().join(name);
    let by_hand = Command::new(&path).env_remove("CNI_COMMAND").stdin(Stdio::null()).output().ok();
    let said = by_hand.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    let said = said.unwrap_or_default().lines().next().unwrap_or(name).trim().to_owned();
    let package = output("dpkg-query", &["-S", &path.display().to_string()]);
    let package = package.split(':').next().unwrap_or_default();
    if package.is_empty() {
        return said;
    }
    format!("{said}, {package} {}", output("dpkg-query", &["-W", "-f", "${Version}", package]))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first line `name : value` of a file.
fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    value.unwrap_or("unknown").to_owned()
}

fn kib(value: &str) -> u64 {
    value.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What a command prints; nothing where there is no such command or it fails.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let printed = output.ok().filter(|output| output.status.success());
    printed
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
