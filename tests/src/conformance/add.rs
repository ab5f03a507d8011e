//! ADD: refused where it must be, side by side with others, and nothing left of one that failed.

use std::collections::BTreeSet;
use std::process::Child;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Entry;
use super::answer::{refusal, silent_success, success};
use super::bench::{Bench, addresses, has_link, with_result};
use crate::{CniOutput, Pod};

const EXISTS: &str = "If an interface of the requested name already exists in the container, the \
                      CNI plugin MUST return with an error";
const CONCURRENT: &str = "Plugins must handle being executed concurrently across different \
                          containers";
const AFTERWARDS: &str = "A delete must still be executed even if the add fails";
const BEYOND: &str = "Beyond the specification: an ADD that fails leaves nothing, whether or not a \
                      DEL follows";

/// Sandboxes that are attached at the same time.
const CROWD: usize = 12;

pub(super) const CHECKS: &[Entry] = &[
    (EXISTS, "and the interface that was there stays", existing_interface),
    (EXISTS, "a second ADD of the same attachment leaves the first intact", second_add),
    (
        "a given container ID may be added to a specific network more than once only if each \
         addition is done with a different interface name",
        "eth0 and net1 of one container; DEL of net1 leaves eth0",
        second_interface,
    ),
    (
        "CNI_ARGS: Extra arguments […] Alphanumeric key-value pairs separated by semicolons",
        "IgnoreUnknown=1;FOO=BAR;ABC=123",
        arguments,
    ),
    (
        "If the plugin was supplied a prevResult […] it MUST handle prevResult by either passing \
         it through, or modifying it appropriately",
        "interface and address of an earlier plugin are in the result",
        previous_result,
    ),
    (CONCURRENT, "12 ADDs at once: every address once, every CHECK sound", parallel_adds),
    (CONCURRENT, "12 DELs at once leave nothing", parallel_dels),
    (AFTERWARDS, "the interface exists: after DEL nothing is left", residue_after_del),
    (BEYOND, "the interface exists: no link, address, route or file is left", residue),
    (BEYOND, "the interface exists: the address is free again", leaked_address),
    (BEYOND, "the range is used up: an error, and nothing is left", used_up),
];

fn existing_interface(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    take_name(&pod);
    let output = bench.call(&pod, "ADD", &bench.network()).execute();
    let untouched = has_link(&pod, "mine")?;
    refusal(&output, "ADD")?;
    ensure!(untouched, "the interface that was there is gone");
    Ok(())
}

fn second_add(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &network)?;
    let before = bench.snapshot();
    refusal(&bench.call(&pod, "ADD", &network).execute(), "the second ADD")?;
    before.expect_same(&bench.node)?;
    ensure!(has_link(&pod, "eth0")?, "eth0 is gone");
    if bench.needs_check().is_ok() {
        bench.expect_sound(&pod, &network, &result)?;
    }
    Ok(())
}

fn second_interface(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    let net1 = |verb| bench.call(&pod, verb, &network).env("CNI_IFNAME", "net1").execute();
    success(&net1("ADD"), "ADD of net1")?;
    ensure!(has_link(&pod, "eth0")? && has_link(&pod, "net1")?, "one of the two is not there");
    silent_success(&net1("DEL"), "DEL of net1")?;
    ensure!(has_link(&pod, "eth0")?, "eth0 went with net1");
    ensure!(!has_link(&pod, "net1")?, "net1 is still there");
    Ok(())
}

fn arguments(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let call = bench.call(&pod, "ADD", &bench.network());
    success(&call.env("CNI_ARGS", "IgnoreUnknown=1;FOO=BAR;ABC=123").execute(), "ADD")?;
    ensure!(has_link(&pod, "eth0")?, "the pod has no eth0");
    Ok(())
}

fn previous_result(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let mut network = bench.network();
    let mut ip = json!({"address": "10.253.0.7/24", "interface": 0});
    if network["cniVersion"].as_str().is_some_and(|version| version.starts_with('0')) {
        ip["version"] = json!("4");
    }
    let sandbox = pod.netns_path();
    let earlier = json!({
        "cniVersion": network["cniVersion"],
        "interfaces": [{"name": "earlier0", "sandbox": sandbox, "mac": "02:00:00:00:00:07"}],
        "ips": [ip],
        "dns": {},
    });
    network = with_result(&network, &earlier);
    let result = bench.add(&pod, &network)?;
    ensure!(addresses(&result).iter().any(|ip| ip == "10.253.0.7"), "its address is lost");
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    ensure!(interfaces.iter().any(|interface| interface["name"] == "earlier0"), "its interface is");
    for ip in result["ips"].as_array().into_iter().flatten() {
        let index = ip["interface"].as_u64().context("an address without an interface")?;
        let name = &interfaces.get(index as usize).context("an index out of bounds")?["name"];
        let of_earlier = ip["address"] == "10.253.0.7/24";
        ensure!((name == "earlier0") == of_earlier, "{ip} points to {name}");
    }
    Ok(())
}

fn parallel_adds(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let pods = crowd(bench);
    let results = all_at_once(bench, "ADD", &pods, &network)?;
    let given: Vec<String> = results.iter().flat_map(addresses).collect();
    let distinct: BTreeSet<&String> = given.iter().collect();
    ensure!(distinct.len() == given.len(), "an address was given twice: {given:?}");
    ensure!(given.len() >= pods.len(), "not every pod has an address: {given:?}");
    if bench.needs_check().is_ok() {
        for (pod, result) in pods.iter().zip(&results) {
            bench.expect_sound(pod, &network, result).context(pod.container_id().to_owned())?;
        }
    }
    Ok(())
}

fn parallel_dels(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pods = crowd(bench);
    for pod in &pods {
        bench.add(pod, &network)?;
    }
    all_at_once(bench, "DEL", &pods, &network)?;
    before.expect_same(&bench.node)?;
    drop(bystander);
    Ok(())
}

fn residue(bench: &Bench<'_>) -> Result<()> {
    after_failure(bench, |_, _| Ok(()))
}

fn residue_after_del(bench: &Bench<'_>) -> Result<()> {
    after_failure(bench, |pod, network| {
        // The DEL may take the interface by its name, whosever it is.
        pod.run(&["ip", "link", "del", "eth0"]);
        bench.del(pod, network)
    })
}

/// An ADD that fails since its interface exists, and what comes after it, must leave the node as it
/// was.
fn after_failure(
    bench: &Bench<'_>,
    afterwards: impl FnOnce(&Pod<'_>, &Value) -> Result<()>,
) -> Result<()> {
    let network = bench.network();
    let bystander = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pod = bench.node.sandbox("a");
    take_name(&pod);
    refusal(&bench.call(&pod, "ADD", &network).execute(), "ADD")?;
    afterwards(&pod, &network)?;
    before.expect_same(&bench.node)?;
    drop(bystander);
    Ok(())
}

fn leaked_address(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    take_name(&pod);
    refusal(&bench.call(&pod, "ADD", &network).execute(), "ADD")?;
    bench.expect_free(&network)
}

fn used_up(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network_of(1)?;
    let (bystander, result) = bench.bystander(&network)?;
    let before = bench.snapshot();
    let pod = bench.node.sandbox("a");
    refusal(&bench.call(&pod, "ADD", &network).execute(), "ADD")?;
    before.expect_same(&bench.node)?;
    ensure!(!has_link(&pod, "eth0")?, "the pod has eth0 all the same");
    if bench.needs_check().is_ok() {
        bench.expect_sound(&bystander, &network, &result)?;
    }
    Ok(())
}

fn crowd<'a>(bench: &'a Bench<'_>) -> Vec<Pod<'a>> {
    (0..CROWD).map(|number| bench.node.sandbox(&format!("pod{number}"))).collect()
}

fn all_at_once(
    bench: &Bench<'_>,
    verb: &str,
    pods: &[Pod<'_>],
    network: &Value,
) -> Result<Vec<Value>> {
    let children: Vec<Child> =
        pods.iter().map(|pod| bench.call(pod, verb, network).start()).collect();
    let outputs: Vec<CniOutput> = children.into_iter().map(CniOutput::of).collect();
    outputs.iter().map(|output| success(output, verb)).collect()
}

/// An interface `eth0` that is somebody else's.
fn take_name(pod: &Pod<'_>) {
    pod.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "mine"]);
}
