//! What CHECK and a failed ADD must be right about in margay besides: filters, map entries, host
//! routes, neighbours.

use anyhow::{Context, Result, ensure};
use margay_datapath::Pods;
use serde_json::Value;

use super::Entry;
use super::answer::refusal;
use super::bench::{Bench, addresses, not_applicable};
use super::check::sabotaged;

const OTHER: &str = "The plugin should return an error if other resources not tracked in the \
                     Result type […] are missing";

pub(super) const CHECKS: &[Entry] = &[
    (OTHER, "the filter for what the pod sends was deleted", without_from_pod),
    (OTHER, "the filter for what the pod gets was deleted", without_to_pod),
    (OTHER, "a map entry was deleted", without_map_entry),
    (OTHER, "a route of the host was deleted", without_host_route),
    (OTHER, "a neighbour of the host was deleted", without_neighbour),
    (
        "Beyond the specification: an ADD that fails leaves nothing, whether or not a DEL follows",
        "no map entry is left",
        residue,
    ),
];

fn without_from_pod(bench: &Bench<'_>) -> Result<()> {
    on_host_veth(bench, |veth, _| format!("tc filter del dev {veth} ingress"))
}

fn without_to_pod(bench: &Bench<'_>) -> Result<()> {
    on_host_veth(bench, |veth, _| format!("tc filter del dev {veth} egress"))
}

fn without_host_route(bench: &Bench<'_>) -> Result<()> {
    on_host_veth(bench, |veth, ip| format!("ip route del {ip} dev {veth}"))
}

fn without_neighbour(bench: &Bench<'_>) -> Result<()> {
    on_host_veth(bench, |veth, ip| format!("ip neigh del {ip} dev {veth}"))
}

fn without_map_entry(bench: &Bench<'_>) -> Result<()> {
    only_margay(bench)?;
    sabotaged(bench, &bench.node.sandbox("a"), "without a map entry", |_, result| {
        let address = addresses(result).first().context("no address")?.parse()?;
        let removed = pods(bench)?.remove(address)?;
        ensure!(removed, "there was no map entry of {address}");
        Ok(())
    })
}

fn residue(bench: &Bench<'_>) -> Result<()> {
    only_margay(bench)?;
    let network = bench.network();
    let (_bystander, result) = bench.bystander(&network)?;
    let pod = bench.node.sandbox("a");
    pod.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "mine"]);
    refusal(&bench.call(&pod, "ADD", &network).execute(), "ADD")?;
    let entries = pods(bench)?.entries()?;
    ensure!(entries.len() == addresses(&result).len(), "map entries: {:?}", entries.keys());
    Ok(())
}

fn on_host_veth(bench: &Bench<'_>, command: impl FnOnce(&str, &str) -> String) -> Result<()> {
    only_margay(bench)?;
    sabotaged(bench, &bench.node.sandbox("a"), "after the sabotage", |_, result| {
        let address = addresses(result).first().context("no address")?.clone();
        let command = command(host_veth(result)?, &address);
        bench.node.run(&command.split_whitespace().collect::<Vec<_>>());
        Ok(())
    })
}

/// The maps of pods, which all builds share.
fn pods(bench: &Bench<'_>) -> Result<Pods> {
    Pods::open(&bench.node.bpffs_root())?.context("no maps are pinned")
}

fn host_veth(result: &Value) -> Result<&str> {
    result["interfaces"][0]["name"].as_str().context("no interface")
}

fn only_margay(bench: &Bench<'_>) -> Result<()> {
    let is_margay = bench.subject.name() == "margay";
    if is_margay { Ok(()) } else { Err(not_applicable("about margay's own resources")) }
}
