//! A chain of plugins, executed as the reference library libcni executes a network configuration
//! list: each plugin is handed the list's name and version, what the runtime says for the
//! capabilities that it has, and the result so far.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cni::{CniOutput, Invocation};
use crate::node;
use crate::pod::Pod;

/// The only version without CHECK, and without the result of the ADD in a DEL.
const WITHOUT_CHECK: &str = "0.3.1";
/// Plugins start others: portmap, iptables.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A network configuration list.
#[derive(Clone, Debug)]
pub struct Conflist {
    version: String,
    name: String,
    plugins: Vec<Value>,
    runtime: Map<String, Value>,
    directories: Vec<PathBuf>,
}

impl Conflist {
    /// A list of one plugin, from a configuration of it alone.
    ///
    /// # Panics
    /// When that has no name or no version.
    #[must_use]
    pub fn of(network: &Value) -> Self {
        let text = |key: &str| network[key].as_str().expect("a network's name and version");
        let (version, name) = (text("cniVersion").to_owned(), text("name").to_owned());
        let mut plugin = network.clone();
        let keys = plugin.as_object_mut().expect("an object");
        keys.retain(|key, _| key != "cniVersion" && key != "name");
        Self {
            version,
            name,
            plugins: vec![plugin],
            runtime: Map::new(),
            directories: vec![node::plugin_directory(), node::reference_plugin_directory()],
        }
    }

    /// Puts a plugin behind the others.
    #[must_use]
    pub fn then(mut self, plugin: Value) -> Self {
        self.plugins.push(plugin);
        self
    }

    /// Puts a plugin in front of the others.
    #[must_use]
    pub fn after(mut self, plugin: Value) -> Self {
        self.plugins.insert(0, plugin);
        self
    }

    /// Leaves a plugin out.
    #[must_use]
    pub fn without(mut self, plugin: &str) -> Self {
        self.plugins.retain(|config| config["type"] != plugin);
        self
    }

    /// Sets the list's version.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// What the runtime says to the plugins that have this capability.
    #[must_use]
    pub fn runtime(mut self, capability: &str, value: Value) -> Self {
        self.runtime.insert(capability.to_owned(), value);
        self
    }

    /// Looks for plugins in this directory first.
    #[must_use]
    pub fn directory(mut self, path: &Path) -> Self {
        self.directories.insert(0, path.to_owned());
        self
    }

    /// The versions that each of the plugins speaks, oldest first.
    ///
    /// # Panics
    /// When one does not say.
    #[must_use]
    pub fn versions(&self) -> Vec<String> {
        let spoken = |plugin: &Value| -> Vec<String> {
            let config = json!({"cniVersion": "1.0.0"});
            let answer = self.invocation(plugin, "VERSION", &config).execute().success();
            serde_json::from_value(answer["supportedVersions"].clone()).expect("versions")
        };
        let all: Vec<Vec<String>> = self.plugins.iter().map(spoken).collect();
        let by_all = |version: &&String| all.iter().all(|spoken| spoken.contains(version));
        all[0].iter().filter(by_all).cloned().collect()
    }

    /// ADD of each plugin in order, each with the result of the one before: the last answer, or the
    /// first error.
    ///
    /// # Panics
    /// When there is no plugin.
    pub fn add(&self, pod: &Pod<'_>) -> CniOutput {
        let mut previous = None;
        let mut output = None;
        for plugin in &self.plugins {
            let answer = self.invocation_for(plugin, "ADD", pod, previous.as_ref()).execute();
            if !answer.is_success() {
                return answer;
            }
            previous = Some(answer.success());
            output = Some(answer);
        }
        output.expect("a plugin")
    }

    /// CHECK of each plugin in order, each with the result of the ADD.
    ///
    /// # Panics
    /// When the version has no CHECK.
    pub fn check(&self, pod: &Pod<'_>, result: &Value) -> CniOutput {
        assert_ne!(self.version, WITHOUT_CHECK, "it has no CHECK");
        let checks = self.plugins.iter();
        first_error(
            checks.map(|plugin| self.invocation_for(plugin, "CHECK", pod, Some(result)).execute()),
        )
    }

    /// DEL of each plugin in reverse order, with the result of the ADD if it came so far.
    pub fn del(&self, pod: &Pod<'_>, result: Option<&Value>) -> CniOutput {
        first_error(self.deletions(pod, result).iter().map(Invocation::execute))
    }

    /// What [`del`](Self::del) executes, for when the sandbox has gone.
    #[must_use]
    pub fn deletions(&self, pod: &Pod<'_>, result: Option<&Value>) -> Vec<Invocation> {
        let result = result.filter(|_| self.version != WITHOUT_CHECK);
        let in_reverse = self.plugins.iter().rev();
        in_reverse.map(|plugin| self.invocation_for(plugin, "DEL", pod, result)).collect()
    }

    /// STATUS of each plugin in order.
    pub fn status(&self) -> CniOutput {
        first_error(
            self.plugins.iter().map(|plugin| {
                self.invocation(plugin, "STATUS", &self.config(plugin, None)).execute()
            }),
        )
    }

    /// GC of each plugin in order, with `eth0` of these pods as what is to be kept.
    pub fn gc(&self, valid: &[&Pod<'_>]) -> CniOutput {
        let valid: Vec<Value> = valid
            .iter()
            .map(|pod| json!({"containerID": pod.container_id(), "ifname": "eth0"}))
            .collect();
        first_error(self.plugins.iter().map(|plugin| {
            let mut config = self.config(plugin, None);
            config["cni.dev/valid-attachments"] = valid.clone().into();
            config["cni.dev/attachments"] = valid.clone().into();
            self.invocation(plugin, "GC", &config).execute()
        }))
    }

    fn invocation_for(
        &self,
        plugin: &Value,
        verb: &str,
        pod: &Pod<'_>,
        previous: Option<&Value>,
    ) -> Invocation {
        self.invocation(plugin, verb, &self.config(plugin, previous))
            .env("CNI_CONTAINERID", pod.container_id())
            .env("CNI_NETNS", pod.netns_path().to_str().expect("path"))
            .env("CNI_IFNAME", "eth0")
    }

    fn invocation(&self, plugin: &Value, verb: &str, config: &Value) -> Invocation {
        let name = plugin["type"].as_str().expect("type");
        let places = self.directories.iter().map(|directory| directory.join(name));
        let executable = places.into_iter().find(|place| place.is_file());
        let executable =
            executable.unwrap_or_else(|| panic!("no {name} in {:?}", self.directories));
        let paths = std::env::join_paths(&self.directories).expect("paths");
        Invocation::new(executable.to_str().expect("path"), verb, config)
            .env("CNI_PATH", paths.to_str().expect("paths"))
            .env("PATH", PATH)
    }

    /// What a plugin reads.
    fn config(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.clone().into();
        config["name"] = self.name.clone().into();
        let has = |capability: &&String| plugin["capabilities"][capability.as_str()] == json!(true);
        let told: Map<String, Value> = self
            .runtime
            .iter()
            .filter(|(capability, _)| has(capability))
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !told.is_empty() {
            config["runtimeConfig"] = told.into();
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }
}

/// The first answer that is an error, or the last answer. What comes behind an error is not asked
/// for.
fn first_error(answers: impl Iterator<Item = CniOutput>) -> CniOutput {
    let mut last = None;
    for answer in answers {
        let is_success = answer.is_success();
        last = Some(answer);
        if !is_success {
            break;
        }
    }
    last.expect("a plugin")
}
