//! The plugin under test: its binary and a network configuration for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::{plugin_directory, reference_plugin_directory};
use crate::{CniOutput, Invocation};

/// In a configuration, stands for the directory of the node that the check runs on.
const DIRECTORY: &str = "@DIR@";

/// The versions of the specification that the suite knows, oldest first.
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A plugin to be tested.
#[derive(Debug)]
pub struct Subject {
    name: String,
    directory: PathBuf,
    template: Value,
    versions: Vec<String>,
}

/// margay, from the build that this suite is of, and the two plugins of the CNI project that do
/// the same work.
pub fn reference() -> Result<[Subject; 3]> {
    let reference = &reference_plugin_directory();
    Ok([
        Subject::margay()?,
        Subject::new("ptp", reference, include_str!("../../conformance/ptp.json"))?,
        Subject::new("bridge", reference, include_str!("../../conformance/bridge.json"))?,
    ])
}

impl Subject {
    /// margay, from the build that this suite is of.
    pub fn margay() -> Result<Self> {
        Self::new("margay", &plugin_directory(), include_str!("../../conformance/margay.json"))
    }

    /// The plugin `name` in `directory`, with a network configuration, which may be a list.
    /// `@DIR@` in it stands for a directory that each check has to itself, with the folders
    /// `state`, `run` and `bpf`, a BPF file system.
    pub fn new(name: &str, directory: &Path, conf: &str) -> Result<Self> {
        let template = network(name, conf).context("network configuration")?;
        let directory = fs::canonicalize(directory)
            .with_context(|| format!("directory of plugins {}", directory.display()))?;
        let mut subject = Self { name: name.to_owned(), directory, template, versions: vec![] };
        let executable = subject.executable();
        anyhow::ensure!(Path::new(&executable).is_file(), "there is no plugin {executable}");
        subject.versions = subject.supported_versions();
        Ok(subject)
    }

    /// Name of its binary.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is, which versions of the specification it says it supports, and which release it
    /// is, as far as it or the package manager says.
    #[must_use]
    pub fn description(&self) -> String {
        let versions = self.versions.join(", ");
        format!("{}, which supports {versions}", self.release().unwrap_or_default())
    }

    /// Path of the binary.
    pub(super) fn executable(&self) -> String {
        self.directory.join(&self.name).display().to_string()
    }

    /// Where it finds its IPAM plugin.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Those of [`VERSIONS`] that it says it supports.
    pub(super) fn versions(&self) -> impl DoubleEndedIterator<Item = &'static str> {
        VERSIONS.into_iter().filter(|version| self.supports(version))
    }

    pub(super) fn supports(&self, version: &str) -> bool {
        self.versions.iter().any(|supported| supported == version)
    }

    /// Its network configuration on a node, in the newest version that both sides know.
    pub(super) fn network(&self, node: &Path) -> Value {
        let mut network = self.template.clone();
        fill_in(&mut network, &node.display().to_string());
        if let Some(newest) = self.versions().next_back() {
            network["cniVersion"] = json!(newest);
        }
        network
    }

    pub(super) fn version(&self, stdin: &Value) -> CniOutput {
        Invocation::new(&self.executable(), "VERSION", stdin).execute()
    }

    /// Where VERSION does not work, the version of its configuration must do.
    fn supported_versions(&self) -> Vec<String> {
        let output = self.version(&json!({"cniVersion": self.template["cniVersion"]}));
        let answer: Value = serde_json::from_str(&output.stdout()).unwrap_or_default();
        let listed = answer["supportedVersions"].as_array().cloned().unwrap_or_default();
        let mut versions: Vec<String> =
            listed.iter().filter_map(|version| Some(version.as_str()?.to_owned())).collect();
        if versions.is_empty() {
            versions.extend(self.template["cniVersion"].as_str().map(str::to_owned));
        }
        versions
    }

    /// What it says of itself when it is executed by hand, or the package that it came in.
    fn release(&self) -> Option<String> {
        let by_hand = Command::new(self.executable())
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&by_hand.stderr).lines().next()?.trim().to_owned();
        if !said.ends_with("unknown") && !said.is_empty() {
            return Some(said);
        }
        let package = Command::new("dpkg-query").args(["-S", &self.executable()]).output().ok()?;
        let package = String::from_utf8_lossy(&package.stdout).split(':').next()?.to_owned();
        let version =
            Command::new("dpkg-query").args(["-W", "-f", "${Version}", &package]).output().ok()?;
        Some(format!("{} of {package} {}", self.name, String::from_utf8_lossy(&version.stdout)))
    }
}

/// The configuration as a plugin gets it: of a list, the part that is the plugin's.
fn network(name: &str, conf: &str) -> Result<Value> {
    let conf: Value = serde_json::from_str(conf)?;
    let Some(plugins) = conf["plugins"].as_array() else { return Ok(conf) };
    let own = plugins.iter().find(|plugin| plugin["type"] == name);
    let mut network = own.with_context(|| format!("no plugin of type {name} in the list"))?.clone();
    network["cniVersion"] = conf["cniVersion"].clone();
    network["name"] = conf["name"].clone();
    network.as_object_mut().context("a plugin that is no object")?.remove("capabilities");
    Ok(network)
}

fn fill_in(value: &mut Value, directory: &str) {
    match value {
        Value::String(text) => *text = text.replace(DIRECTORY, directory),
        Value::Array(values) => values.iter_mut().for_each(|value| fill_in(value, directory)),
        Value::Object(map) => map.values_mut().for_each(|value| fill_in(value, directory)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_list_the_plugins_own_part_is_taken_as_a_runtime_does() {
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "capabilities": {"ips": true}, "mtu": 1400},
                {"type": "portmap"},
            ],
        });

        let network = network("ptp", &list.to_string());

        let wanted = json!({"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "mtu": 1400});
        assert_eq!(network.ok(), Some(wanted));
        assert!(super::network("bridge", &list.to_string()).is_err());
    }

    #[test]
    fn the_directory_is_filled_in_wherever_it_stands() {
        let mut network = json!({"a": "@DIR@/state", "b": [{"c": "x@DIR@"}], "d": 1});
        fill_in(&mut network, "/tmp/n");
        assert_eq!(network, json!({"a": "/tmp/n/state", "b": [{"c": "x/tmp/n"}], "d": 1}));
    }
}
