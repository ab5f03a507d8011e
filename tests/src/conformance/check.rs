//! CHECK: quiet about what is sound, and not fooled about anything that is not.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Entry;
use super::answer::success;
use super::bench::{Bench, addresses, not_applicable};
use crate::{Invocation, Pod};

const RESOURCE: &str = "The plugin should return an error if a resource included in the CNI Result \
                        type (interface, address or route) […] is missing or in an invalid state";
const OTHER: &str = "The plugin should return an error if other resources not tracked in the \
                     Result type […] are missing";
const LATER: &str = "The plugin must allow for a later chained plugin to have modified networking \
                     resources";

pub(super) const CHECKS: &[Entry] = &[
    (
        "The plugin must handle CHECK being called immediately after an ADD",
        "and prints nothing, in each version that has CHECK",
        at_once,
    ),
    (RESOURCE, "an address was taken from the interface", without_address),
    (RESOURCE, "a route of the result was deleted", without_route),
    (RESOURCE, "the interface was deleted", without_link),
    (RESOURCE, "the interface was set down", link_down),
    (RESOURCE, "the interface has another MAC address", other_mac),
    (OTHER, "the address was given back behind its back (IP reservations)", without_reservation),
    (
        "The plugin must consult the prevResult to determine the expected interfaces and addresses",
        "prevResult has an address of eth0 that it does not have",
        other_result,
    ),
    (LATER, "a route was added in the pod", later_route),
    (LATER, "a later plugin gave eth0 another address, and prevResult has it", later_address),
    (LATER, "a later plugin's interface and address are in prevResult", later_interface),
    ("3: Container unknown or does not exist", "an error after DEL", after_del),
];

fn at_once(bench: &Bench<'_>) -> Result<()> {
    bench.needs_check()?;
    let mut network = bench.network();
    for version in bench.subject.versions().filter(|version| *version != "0.3.1") {
        network["cniVersion"] = json!(version);
        let pod = bench.node.sandbox(&format!("v{version}"));
        let result = bench.add(&pod, &network)?;
        bench.expect_sound(&pod, &network, &result).context(version)?;
    }
    Ok(())
}

fn without_address(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("counted");
    let count = with_attachment(bench, &pod, |_, result| Ok(addresses(result).len()))?;
    for index in 0..count {
        let pod = bench.node.sandbox(&format!("pod{index}"));
        sabotaged(bench, &pod, "without an address", |pod, result| {
            let prefix = result["ips"][index]["address"].as_str().context("address")?;
            pod.run(&["ip", "addr", "del", prefix, "dev", "eth0"]);
            Ok(())
        })?;
    }
    Ok(())
}

fn without_route(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("counted");
    let count = with_attachment(bench, &pod, |_, result| {
        Ok(result["routes"].as_array().map_or(0, Vec::len))
    })?;
    if count == 0 {
        return Err(not_applicable("its result has no routes"));
    }
    for index in 0..count {
        let pod = bench.node.sandbox(&format!("pod{index}"));
        sabotaged(bench, &pod, "without a route", |pod, result| {
            let destination = result["routes"][index]["dst"].as_str().context("dst")?;
            let family = if destination.contains(':') { "-6" } else { "-4" };
            pod.run(&["ip", family, "route", "del", destination]);
            Ok(())
        })?;
    }
    Ok(())
}

fn without_link(bench: &Bench<'_>) -> Result<()> {
    sabotaged_with(bench, "without the interface", &["ip", "link", "del", "eth0"])
}

fn link_down(bench: &Bench<'_>) -> Result<()> {
    sabotaged_with(bench, "with the interface down", &["ip", "link", "set", "eth0", "down"])
}

fn other_mac(bench: &Bench<'_>) -> Result<()> {
    let command = ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"];
    sabotaged_with(bench, "with another MAC address", &command)
}

fn without_reservation(bench: &Bench<'_>) -> Result<()> {
    let network = bench.network();
    let ipam = network["ipam"]["type"].as_str().map(|ipam| bench.subject.directory().join(ipam));
    let ipam = ipam.ok_or_else(|| not_applicable("the configuration has no ipam section"))?;
    let pod = bench.node.sandbox("a");
    sabotaged(bench, &pod, "without the reservation", |pod, _| {
        let del: Invocation = pod.invocation_of(&ipam.display().to_string(), "DEL", &network);
        let path = bench.subject.directory().display().to_string();
        success(&del.env("CNI_PATH", &path).execute(), "DEL of the IPAM plugin").map(drop)
    })
}

fn other_result(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    with_attachment(bench, &pod, |network, result| {
        let mut result = result.clone();
        result["ips"][0]["address"] = json!("10.253.0.9/32");
        bench.expect_unsound(&pod, network, &result, "with an address that eth0 does not have")
    })
}

fn later_route(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    with_attachment(bench, &pod, |network, result| {
        pod.run(&["ip", "route", "add", "10.254.0.0/16", "dev", "eth0"]);
        bench.expect_sound(&pod, network, result)
    })
}

fn later_address(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    with_attachment(bench, &pod, |network, result| {
        let mut result = result.clone();
        let mut ip = result["ips"][0].clone();
        ip["address"] = json!("10.253.0.8/24");
        result["ips"].as_array_mut().context("no ips")?.push(ip);
        pod.run(&["ip", "addr", "add", "10.253.0.8/24", "dev", "eth0"]);
        bench.expect_sound(&pod, network, &result)
    })
}

fn later_interface(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    with_attachment(bench, &pod, |network, result| {
        let mut result = result.clone();
        let interfaces = result["interfaces"].as_array_mut().context("no interfaces")?;
        interfaces.push(json!({
            "name": "later0", "mac": "02:00:00:00:00:08", "sandbox": pod.netns_path(),
        }));
        let mut ip = result["ips"][0].clone();
        ip["address"] = json!("10.253.0.8/24");
        ip["interface"] = json!(result["interfaces"].as_array().map_or(0, |all| all.len() - 1));
        if let Some(ip) = ip.as_object_mut() {
            ip.remove("gateway");
        }
        result["ips"].as_array_mut().context("no ips")?.push(ip);
        let commands: [&[&str]; 2] = [
            &["ip", "link", "add", "later0", "address", "02:00:00:00:00:08", "type", "veth"],
            &["ip", "addr", "add", "10.253.0.8/24", "dev", "later0"],
        ];
        for command in commands {
            pod.run(command);
        }
        pod.run(&["ip", "link", "set", "later0", "up"]);
        bench.expect_sound(&pod, network, &result)
    })
}

fn after_del(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    with_attachment(bench, &pod, |network, result| {
        bench.del(&pod, network)?;
        bench.expect_unsound(&pod, network, result, "after DEL")
    })
}

fn sabotaged_with(bench: &Bench<'_>, what: &str, command: &[&str]) -> Result<()> {
    sabotaged(bench, &bench.node.sandbox("a"), what, |pod, _| {
        pod.run(command);
        Ok(())
    })
}

/// Sound after the ADD, unsound after the sabotage, and the DEL works all the same.
pub(super) fn sabotaged(
    bench: &Bench<'_>,
    pod: &Pod<'_>,
    what: &str,
    sabotage: impl FnOnce(&Pod<'_>, &Value) -> Result<()>,
) -> Result<()> {
    with_attachment(bench, pod, |network, result| {
        bench.expect_sound(pod, network, result)?;
        sabotage(pod, result)?;
        bench.expect_unsound(pod, network, result, what)?;
        bench.del(pod, network)
    })
}

fn with_attachment<T>(
    bench: &Bench<'_>,
    pod: &Pod<'_>,
    work: impl FnOnce(&Value, &Value) -> Result<T>,
) -> Result<T> {
    bench.needs_check()?;
    let network = bench.network();
    let result = bench.add(pod, &network)?;
    work(&network, &result)
}
