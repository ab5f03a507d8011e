//! A plugin on a node: what the checks do with it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::answer::{refusal, silent_success, success};
use super::snapshot::Snapshot;
use super::{NotApplicable, Subject};
use crate::{CniOutput, Invocation, Node, Pod};

/// A plugin on a node of its own.
pub(super) struct Bench<'a> {
    pub(super) subject: &'a Subject,
    pub(super) node: Node,
}

impl<'a> Bench<'a> {
    /// Turns the calling thread into a node for the plugin.
    pub(super) fn new(subject: &'a Subject) -> Result<Self> {
        Ok(Self { subject, node: Node::new().context("making a node needs root")? })
    }

    /// The plugin's network configuration.
    pub(super) fn network(&self) -> Value {
        self.subject.network(self.node.directory())
    }

    /// The same with a range of so few addresses, IPv4.
    pub(super) fn network_of(&self, addresses: u8) -> Result<Value> {
        let mut network = self.network();
        let ipam = network["ipam"].as_object_mut();
        let ipam = ipam.ok_or_else(|| not_applicable("the configuration has no ipam section"))?;
        let last = 1 + addresses;
        match ipam.get("type").and_then(Value::as_str) {
            Some("margay-ipam") => {
                let pools = (2..=last).map(|host| json!({"cidr": format!("10.251.0.{host}/32")}));
                ipam.insert("pools".into(), pools.collect());
            }
            Some("host-local") => {
                ipam.remove("subnet");
                let range = json!({
                    "subnet": "10.251.0.0/24",
                    "rangeStart": "10.251.0.2",
                    "rangeEnd": format!("10.251.0.{last}"),
                });
                ipam.insert("ranges".into(), json!([[range]]));
            }
            other => {
                let ipam = other.unwrap_or("without a type");
                return Err(not_applicable(&format!(
                    "how to make an IPAM {ipam} small is unknown"
                )));
            }
        }
        Ok(network)
    }

    /// The check is about verbs or keys of a version: the plugin must know it.
    pub(super) fn needs(&self, version: &str) -> Result<()> {
        if self.subject.supports(version) {
            return Ok(());
        }
        Err(not_applicable(&format!("its versions lack {version}")))
    }

    /// CHECK came with 0.4.0.
    pub(super) fn needs_check(&self) -> Result<()> {
        let has_it = self.subject.versions().any(|version| version != "0.3.1");
        if has_it { Ok(()) } else { Err(not_applicable("its versions lack CHECK")) }
    }

    /// An execution of the plugin for `eth0` of a sandbox.
    pub(super) fn call(&self, pod: &Pod<'_>, verb: &str, network: &Value) -> Invocation {
        let directory = self.subject.directory().display().to_string();
        pod.invocation_of(&self.subject.executable(), verb, network).env("CNI_PATH", &directory)
    }

    /// A verb that is about no attachment.
    pub(super) fn call_for_network(&self, verb: &str, network: &Value) -> Invocation {
        let directory = self.subject.directory().display().to_string();
        Invocation::new(&self.subject.executable(), verb, network).env("CNI_PATH", &directory)
    }

    pub(super) fn add(&self, pod: &Pod<'_>, network: &Value) -> Result<Value> {
        let result = success(&self.call(pod, "ADD", network).execute(), "ADD")?;
        ensure!(has_link(pod, "eth0")?, "the pod has no eth0 after the ADD");
        Ok(result)
    }

    pub(super) fn del(&self, pod: &Pod<'_>, network: &Value) -> Result<()> {
        silent_success(&self.call(pod, "DEL", network).execute(), "DEL")
    }

    pub(super) fn check(&self, pod: &Pod<'_>, network: &Value, result: &Value) -> CniOutput {
        self.call(pod, "CHECK", &with_result(network, result)).execute()
    }

    /// CHECK must find nothing.
    pub(super) fn expect_sound(
        &self,
        pod: &Pod<'_>,
        network: &Value,
        result: &Value,
    ) -> Result<()> {
        silent_success(&self.check(pod, network, result), "CHECK")
    }

    /// CHECK must find something.
    pub(super) fn expect_unsound(
        &self,
        pod: &Pod<'_>,
        network: &Value,
        result: &Value,
        what: &str,
    ) -> Result<()> {
        refusal(&self.check(pod, network, result), &format!("CHECK {what}")).map(drop)
    }

    /// A sandbox that stays attached, so that all that a plugin makes once per node is there.
    pub(super) fn bystander(&self, network: &Value) -> Result<(Pod<'_>, Value)> {
        let pod = self.node.sandbox("bystander");
        let result = self.add(&pod, network)?;
        Ok((pod, result))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.node)
    }

    /// An address of a [small range](Self::network_of) must be free.
    pub(super) fn expect_free(&self, network: &Value) -> Result<()> {
        let next = self.node.sandbox("next");
        self.add(&next, network).context("the address was not given back")?;
        self.del(&next, network)
    }
}

pub(super) fn not_applicable(reason: &str) -> anyhow::Error {
    NotApplicable(reason.to_owned()).into()
}

/// The configuration of a verb that comes after an ADD.
pub(super) fn with_result(network: &Value, result: &Value) -> Value {
    let mut network = network.clone();
    network["prevResult"] = result.clone();
    network
}

/// The addresses in a result, without their prefix lengths.
pub(super) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let prefixes = ips.filter_map(|ip| ip["address"].as_str());
    prefixes.filter_map(|prefix| Some(prefix.split('/').next()?.to_owned())).collect()
}

pub(super) fn has_link(pod: &Pod<'_>, name: &str) -> Result<bool> {
    Ok(pod.netlink(async |netlink| netlink.link_by_name(name).await)?.is_some())
}
