//! Delegation: what a plugin asks of its IPAM plugin, which keeps a diary here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Entry;
use super::answer::{refusal, silent_success, success};
use super::bench::{Bench, not_applicable, with_result};
use crate::{Invocation, Pod};

const ALSO: &str = "If a plugin is executed with CNI_COMMAND=CHECK or DEL, it must also execute \
                    any delegated plugins";
const AGAIN: &str = "If, on ADD, a delegated plugin fails, the \"upper\" plugin should execute \
                     again with DEL before returning failure";
const RETURNED: &str = "If any of the delegated plugins return error, error should be returned by \
                        the upper plugin";

pub(super) const CHECKS: &[Entry] = &[
    (
        "Delegated plugins are provided the complete network configuration passed to the \"upper\" \
         plugin",
        "on ADD",
        configuration,
    ),
    (
        "The delegated plugin must receive all the same environment variables that were passed in \
         to the CNI plugin",
        "on ADD and DEL",
        environment,
    ),
    (
        "Ensure that the delegated plugin's stderr is output to the calling plugin's stderr",
        "on ADD",
        stderr,
    ),
    (ALSO, "CHECK", on_check),
    (ALSO, "DEL, also after the namespace is gone", on_del),
    (AGAIN, "the IPAM plugin refuses", refused),
    (AGAIN, "the IPAM plugin answers what is no result", senseless),
    (AGAIN, "the ADD fails after the IPAM plugin gave an address", failed_later),
    (RETURNED, "ADD, with the code of the IPAM plugin", add_returns_error),
    (RETURNED, "CHECK", check_returns_error),
    (RETURNED, "DEL", del_returns_error),
    (
        "Beyond the specification: an ADD that fails leaves nothing, whether or not a DEL follows",
        "the IPAM plugin refuses",
        residue,
    ),
    (
        "Plugins MUST, additionally, forward any GC calls to delegated plugins",
        "GC without valid attachments",
        on_gc,
    ),
    (
        "STATUS […] If a plugin relies on a delegated plugin (e.g. IPAM) […] it must also execute \
         a STATUS request to that plugin",
        "and is ready if that is, and not if it is not",
        on_status,
    ),
];

fn configuration(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    success(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    let given = fs::read_to_string(ipam.folder.join("stdin.ADD"))?;
    let given: Value = serde_json::from_str(&given).context("it got no JSON")?;
    ensure!(given == ipam.network, "it got {given}");
    Ok(())
}

fn environment(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    let args = "IgnoreUnknown=1;FOO=BAR";
    for verb in ["ADD", "DEL"] {
        let call = ipam.call(bench, &pod, verb).env("CNI_ARGS", args);
        success(&call.execute(), verb)?;
        ipam.expect(&format!("{verb} a eth0 {} {args}", pod.netns_path().display()))?;
    }
    Ok(())
}

fn stderr(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    let output = ipam.call(bench, &pod, "ADD").execute();
    success(&output, "ADD")?;
    let stderr = output.stderr();
    ensure!(stderr.contains("fake-ipam has a word to say"), "stderr was {stderr:?}");
    Ok(())
}

fn on_check(bench: &Bench<'_>) -> Result<()> {
    bench.needs_check()?;
    let mut ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    ipam.add(bench, &pod)?;
    silent_success(&ipam.call(bench, &pod, "CHECK").execute(), "CHECK")?;
    ipam.expect("CHECK a eth0")
}

fn on_del(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    for vanished in [false, true] {
        let name = if vanished { "vanished" } else { "a" };
        let pod = bench.node.sandbox(name);
        success(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
        let mut del = ipam.call(bench, &pod, "DEL");
        if vanished {
            del = del.without_env("CNI_NETNS");
            pod.destroy();
        }
        silent_success(&del.execute(), "DEL")?;
        ipam.expect(&format!("DEL {name} eth0"))?;
    }
    Ok(())
}

fn refused(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    ipam.refuse("ADD")?;
    let pod = bench.node.sandbox("a");
    refusal(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    ipam.expect("ADD a eth0")?;
    ipam.expect("DEL a eth0")
}

fn failed_later(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    pod.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "mine"]);
    refusal(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    if ipam.calls().contains("ADD a eth0") {
        ipam.expect("DEL a eth0")?;
    }
    Ok(())
}

fn senseless(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    ipam.tell("babble")?;
    let pod = bench.node.sandbox("a");
    refusal(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    ipam.expect("DEL a eth0")
}

fn add_returns_error(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    ipam.refuse("ADD")?;
    let pod = bench.node.sandbox("a");
    refusal(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?.expect("ADD", &[123], "refuses")
}

fn residue(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let bystander = bench.node.sandbox("bystander");
    success(&ipam.call(bench, &bystander, "ADD").execute(), "ADD")?;
    let before = bench.snapshot();
    ipam.refuse("ADD")?;
    let pod = bench.node.sandbox("a");
    refusal(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    before.expect_same(&bench.node)
}

fn check_returns_error(bench: &Bench<'_>) -> Result<()> {
    bench.needs_check()?;
    let mut ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    ipam.add(bench, &pod)?;
    ipam.refuse("CHECK")?;
    refusal(&ipam.call(bench, &pod, "CHECK").execute(), "CHECK")?.expect("CHECK", &[123], "refuses")
}

fn del_returns_error(bench: &Bench<'_>) -> Result<()> {
    let ipam = FakeIpam::install(bench)?;
    let pod = bench.node.sandbox("a");
    success(&ipam.call(bench, &pod, "ADD").execute(), "ADD")?;
    ipam.refuse("DEL")?;
    refusal(&ipam.call(bench, &pod, "DEL").execute(), "DEL")?.expect("DEL", &[123], "refuses")
}

fn on_gc(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let mut ipam = FakeIpam::install(bench)?;
    ipam.network["cni.dev/valid-attachments"] = json!([]);
    silent_success(&ipam.call_for_network(bench, "GC").execute(), "GC")?;
    ipam.expect("GC")
}

fn on_status(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let ipam = FakeIpam::install(bench)?;
    silent_success(&ipam.call_for_network(bench, "STATUS").execute(), "STATUS")?;
    ipam.expect("STATUS")?;
    ipam.refuse("STATUS")?;
    refusal(&ipam.call_for_network(bench, "STATUS").execute(), "STATUS").map(drop)
}

/// An IPAM plugin that keeps a diary, and a network that uses it.
struct FakeIpam {
    folder: PathBuf,
    network: Value,
}

impl FakeIpam {
    fn install(bench: &Bench<'_>) -> Result<Self> {
        let mut network = bench.network();
        if network.get("ipam").is_none() {
            return Err(not_applicable("the configuration has no ipam section"));
        }
        network["ipam"] = json!({"type": "fake-ipam"});
        let version = network["cniVersion"].as_str().unwrap_or_default();
        let family = if version.starts_with('0') { "\"version\": \"4\", " } else { "" };
        let script = include_str!("../../conformance/fake-ipam");
        let script = script.replace("@VERSION@", version).replace("@FAMILY@", family);
        let folder = bench.node.path("fake");
        fs::create_dir(&folder)?;
        fs::write(folder.join("calls"), "")?;
        fs::write(folder.join("fake-ipam"), script)?;
        fs::set_permissions(folder.join("fake-ipam"), fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder, network })
    }

    fn call(&self, bench: &Bench<'_>, pod: &Pod<'_>, verb: &str) -> Invocation {
        bench.call(pod, verb, &self.network).env("CNI_PATH", &self.folder.display().to_string())
    }

    fn call_for_network(&self, bench: &Bench<'_>, verb: &str) -> Invocation {
        let path = self.folder.display().to_string();
        bench.call_for_network(verb, &self.network).env("CNI_PATH", &path)
    }

    /// Attaches the sandbox; what comes after has the result.
    fn add(&mut self, bench: &Bench<'_>, pod: &Pod<'_>) -> Result<()> {
        let result = success(&self.call(bench, pod, "ADD").execute(), "ADD")?;
        self.network = with_result(&self.network, &result);
        Ok(())
    }

    /// Makes it fail a verb from here on.
    fn refuse(&self, verb: &str) -> Result<()> {
        self.tell(&format!("fail.{verb}"))
    }

    fn tell(&self, what: &str) -> Result<()> {
        Ok(fs::write(self.folder.join(what), "")?)
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.folder.join("calls")).unwrap_or_default()
    }

    /// A line of the diary must begin with this.
    fn expect(&self, call: &str) -> Result<()> {
        let calls = self.calls();
        ensure!(calls.lines().any(|line| line.starts_with(call)), "no {call:?} among {calls:?}");
        Ok(())
    }
}
