//! The result of an ADD, in the layout of each version, and that it tells the truth.

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::Entry;
use super::bench::Bench;
use crate::Pod;

const SUCCESS: &str = "Plugins must output a JSON object with the following keys upon a successful \
                       ADD operation: cniVersion […] interfaces […] ips […] routes […] dns";

pub(super) const CHECKS: &[Entry] = &[
    (SUCCESS, "version 0.3.1, in which an address has a version", layout_0_3_1),
    (SUCCESS, "version 0.4.0, in which an address has a version", layout_0_4_0),
    (SUCCESS, "version 1.0.0, in which it has none", layout_1_0_0),
    (SUCCESS, "version 1.1.0, in which it has none", layout_1_1_0),
    (
        "interfaces: An array of all interfaces created by the attachment, including any \
         host-level interfaces",
        "every new link of the host is listed",
        host_interfaces,
    ),
    (
        "ips: IPs assigned by this attachment",
        "the pod's interface has them, and is up",
        assigned_addresses,
    ),
    (
        "routes: Routes created by this attachment",
        "the pod has each route in the result",
        created_routes,
    ),
];

fn layout_0_3_1(bench: &Bench<'_>) -> Result<()> {
    layout(bench, "0.3.1")
}

fn layout_0_4_0(bench: &Bench<'_>) -> Result<()> {
    layout(bench, "0.4.0")
}

fn layout_1_0_0(bench: &Bench<'_>) -> Result<()> {
    layout(bench, "1.0.0")
}

fn layout_1_1_0(bench: &Bench<'_>) -> Result<()> {
    layout(bench, "1.1.0")
}

fn layout(bench: &Bench<'_>, version: &str) -> Result<()> {
    bench.needs(version)?;
    let mut network = bench.network();
    network["cniVersion"] = version.into();
    let pod = bench.node.sandbox("a");

    let result = bench.add(&pod, &network)?;

    ensure!(result["cniVersion"] == version, "cniVersion is {}", result["cniVersion"]);
    let index = interfaces(&result, &pod)?;
    for ip in result["ips"].as_array().context("no ips")? {
        address(ip, index, version.starts_with('0')).with_context(|| format!("in ips: {ip}"))?;
    }
    for route in result["routes"].as_array().into_iter().flatten() {
        parse(&route["dst"]).with_context(|| format!("in routes: {route}"))?;
        parse_optional(&route["gw"]).with_context(|| format!("in routes: {route}"))?;
    }
    let dns = &result["dns"];
    ensure!(dns.is_null() || dns.is_object(), "dns is {dns}");
    bench.del(&pod, &network)
}

/// Looks the interfaces over and returns the index of the pod's.
fn interfaces(result: &Value, pod: &Pod<'_>) -> Result<usize> {
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    for interface in interfaces {
        let sandbox = interface["sandbox"].as_str().unwrap_or_default();
        ensure!(interface["name"].is_string(), "an interface without a name: {interface}");
        let is_pods = sandbox == pod.netns_path().display().to_string();
        ensure!(is_pods || sandbox.is_empty(), "sandbox is {sandbox:?}, not CNI_NETNS or empty");
        let name = interface["name"].as_str().unwrap_or_default();
        let link = if is_pods {
            pod.netlink(async |netlink| netlink.link_by_name(name).await)
        } else {
            pod.node().netlink(async |netlink| netlink.link_by_name(name).await)
        };
        let link = link?.with_context(|| format!("there is no interface {name}"))?;
        let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
        ensure!(interface["mac"] == mac, "{name} has MAC address {mac}: {interface}");
    }
    let own = interfaces.iter().position(|interface| {
        interface["name"] == "eth0" && interface["sandbox"].as_str().is_some_and(|s| !s.is_empty())
    });
    own.context("CNI_IFNAME is not among the interfaces")
}

fn address(ip: &Value, index: usize, has_version: bool) -> Result<()> {
    let prefix = parse(&ip["address"])?;
    ensure!(ip["interface"] == index, "interface is not {index}, that of the pod");
    let version = if prefix.is_ipv4() { "4" } else { "6" };
    let expected = if has_version { version.into() } else { Value::Null };
    ensure!(ip["version"] == expected, "version is not {expected}");
    parse_optional(&ip["gateway"])
}

fn parse(value: &Value) -> Result<IpNetwork> {
    let text = value.as_str().context("no address")?;
    text.parse().with_context(|| format!("{text} is no address"))
}

fn parse_optional(value: &Value) -> Result<()> {
    if value.is_null() { Ok(()) } else { parse(value).map(drop) }
}

fn host_interfaces(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &bench.network())?;
    let listed = result["interfaces"].as_array().context("no interfaces")?;
    for link in bench.node.pod_links() {
        let is_listed = listed.iter().any(|interface| interface["name"] == *link.name);
        ensure!(is_listed, "{} is not in the result", link.name);
    }
    Ok(())
}

fn assigned_addresses(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &bench.network())?;
    let (link, addresses) = pod.netlink(async |netlink| {
        let link = netlink.link_by_name("eth0").await?.context("the pod has no eth0")?;
        anyhow::Ok((link.clone(), netlink.addresses(link.index).await?))
    })?;
    ensure!(link.up, "eth0 is down");
    let ips = result["ips"].as_array().context("no ips")?;
    ensure!(!ips.is_empty(), "no ips");
    for ip in ips {
        let wanted = parse(&ip["address"])?;
        let found = addresses
            .iter()
            .any(|found| found.address == wanted.ip() && found.prefix_length == wanted.prefix());
        ensure!(found, "eth0 does not have {wanted}");
    }
    Ok(())
}

fn created_routes(bench: &Bench<'_>) -> Result<()> {
    let pod = bench.node.sandbox("a");
    let result = bench.add(&pod, &bench.network())?;
    let routes = pod.netlink(async |netlink| {
        let link = netlink.link_by_name("eth0").await?.context("the pod has no eth0")?;
        anyhow::Ok(netlink.routes(link.index).await?)
    })?;
    for route in result["routes"].as_array().into_iter().flatten() {
        let wanted = parse(&route["dst"])?;
        let found = routes.iter().any(|found| {
            found.prefix_length == wanted.prefix()
                && match found.destination {
                    Some(destination) => destination == wanted.ip(),
                    // A default route says which family it is of by its gateway alone.
                    None => {
                        found.gateway.is_none_or(|gateway| gateway.is_ipv4() == wanted.is_ipv4())
                    }
                }
        });
        ensure!(found, "the pod has no route {wanted}");
    }
    Ok(())
}
