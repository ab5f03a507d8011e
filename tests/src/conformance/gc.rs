//! GC: what no valid attachment has goes, what one has stays.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Entry;
use super::answer::silent_success;
use super::bench::Bench;

const STALE: &str = "A plugin SHOULD remove as many stale resources as possible";
const NO_ERROR: &str = "Plugins should generally complete a GC action without error";

pub(super) const CHECKS: &[Entry] = &[
    (NO_ERROR, "on a node where nothing was ever attached", on_nothing),
    (STALE, "no valid attachment: the address of a sandbox that is gone is free again", empty),
    (STALE, "some valid attachments: they stay sound, the others go", partial),
    (STALE, "an attachment is the container and the interface: net1 goes, eth0 stays", interfaces),
    (NO_ERROR, "twice; and the DEL that comes after it", repeated),
    (
        "The GC command provides a way for runtimes to specify the expected set of attachments to \
         a network",
        "another network's attachments stay",
        other_network,
    ),
];

fn on_nothing(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    gc(bench, &bench.network(), &json!([]))
}

fn empty(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network_of(1)?;
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    pod.destroy();
    gc(bench, &network, &json!([]))?;
    bench.expect_free(&network)
}

fn partial(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network_of(2)?;
    let (kept, result) = bench.bystander(&network)?;
    let before = bench.snapshot();
    let stale = bench.node.sandbox("stale");
    bench.add(&stale, &network)?;
    stale.destroy();
    gc(bench, &network, &json!([{"containerID": "bystander", "ifname": "eth0"}]))?;
    before.expect_same(&bench.node)?;
    bench.expect_free(&network)?;
    bench.expect_sound(&kept, &network, &result)
}

fn interfaces(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network_of(2)?;
    let (kept, result) = bench.bystander(&network)?;
    let net1 = bench.call(&kept, "ADD", &network).env("CNI_IFNAME", "net1").execute();
    ensure!(net1.is_success(), "ADD of net1 failed: {}", net1.stdout());
    gc(bench, &network, &json!([{"containerID": "bystander", "ifname": "eth0"}]))?;
    bench.expect_free(&network)?;
    bench.expect_sound(&kept, &network, &result)
}

fn repeated(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network();
    let pod = bench.node.sandbox("a");
    bench.add(&pod, &network)?;
    gc(bench, &network, &json!([]))?;
    gc(bench, &network, &json!([]))?;
    bench.del(&pod, &network)
}

fn other_network(bench: &Bench<'_>) -> Result<()> {
    bench.needs("1.1.0")?;
    let network = bench.network();
    let mut other = network.clone();
    other["name"] = json!("othernet");
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &other)?;
    gc(bench, &network, &json!([]))?;
    bench.expect_sound(&pod, &other, &result).context("attachment of the other network")
}

fn gc(bench: &Bench<'_>, network: &Value, valid: &Value) -> Result<()> {
    let mut network = network.clone();
    network["cni.dev/valid-attachments"] = valid.clone();
    silent_success(&bench.call_for_network("GC", &network).execute(), "GC")
}
