//! The main job, shown: two pods on a node made of namespaces, attached by executing the plugin as
//! a runtime does, talking to each other and to the host through the programs.
//!
//! Ends with an error if anything is off, and leaves the machine as it was.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use margay_abi::{Counter, HOST_VETH_MAC, map_name};
use margay_tests::node::{node_address, run};
use margay_tests::pod::address;
use margay_tests::traffic::{assert_ping, assert_tcp};
use margay_tests::{Node, Pod};
use serde_json::{Value, json};

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "The demo makes network namespaces: run it as root (`sudo -E cargo xtask demo`)."
        );
        return ExitCode::FAILURE;
    }
    let Some(node) = Node::new() else { return ExitCode::FAILURE };
    match demo(&node) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(node: &Node) -> Result<()> {
    println!(
        "A node and two pods, made of network namespaces; nothing of this machine is touched."
    );
    if cfg!(debug_assertions) {
        println!("Times are those of a debug build.");
    }
    let network = network(node)?;
    let (a, b) = (node.sandbox("pod-a"), node.sandbox("pod-b"));

    title("ADD: the plugin attaches both pods");
    let result_a = add(&a, &network);
    let result_b = add(&b, &network);

    title("Traffic over IPv4 and IPv6");
    for ipv4 in [true, false] {
        talk(node, (&a, address(&result_a, ipv4)), (&b, address(&result_b, ipv4)), ipv4);
    }

    title("The pod's gateway is answered for by eBPF");
    show_gateway(&a, &result_a)?;

    title("What an operator sees with bpftool");
    show_maps(node)?;

    title("Counters");
    show_counters(node)?;

    title("CHECK");
    for (pod, result) in [(&a, &result_a), (&b, &result_b)] {
        pod.check(&network, result).success();
        println!("  {}: as its ADD left it", pod.container_id());
    }

    title("DEL: both pods leave");
    for pod in [&a, &b] {
        let started = Instant::now();
        pod.del(&network);
        println!("  {} detached in {:.1} ms", pod.container_id(), milliseconds(started));
    }
    look_for_remains(node)
}

/// The configuration that a host installs, with every path led into the demo's own directories.
fn network(node: &Node) -> Result<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/10-margay.conflist");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let list: Value = serde_json::from_str(&text).context("conf/10-margay.conflist")?;
    let mut network = list["plugins"][0].clone();
    network["cniVersion"] = list["cniVersion"].clone();
    network["name"] = list["name"].clone();
    network["log_level"] = json!("warning");
    network["nodename"] = json!("demo");
    network["state_dir"] = json!(node.path("state"));
    network["run_dir"] = json!(node.path("run"));
    network["bpffs_root"] = json!(node.bpffs_root());
    network.as_object_mut().context("a plugin of the list")?.remove("log_file_path");
    Ok(network)
}

fn add(pod: &Pod<'_>, network: &Value) -> Value {
    let started = Instant::now();
    let result = pod.add(network);
    println!(
        "  CNI_COMMAND=ADD CNI_CONTAINERID={} CNI_IFNAME=eth0 margay   ({:.1} ms)",
        pod.container_id(),
        milliseconds(started)
    );
    let pretty = serde_json::to_string_pretty(&result).unwrap_or_else(|_| result.to_string());
    indent(&pretty);
    result
}

fn talk(node: &Node, a: (&Pod<'_>, IpAddr), b: (&Pod<'_>, IpAddr), ipv4: bool) {
    let ((pod_a, ip_a), (pod_b, ip_b)) = (a, b);
    let host = node_address(ipv4);
    let done = |what: &str, target: IpAddr, round_trip: Option<String>| {
        println!("  {what:<20} {:<34} ok{}", target.to_string(), round_trip.unwrap_or_default());
    };
    done("ping pod-a → pod-b", ip_b, round_trip(&assert_ping(pod_a, ip_b)));
    done("ping pod-b → pod-a", ip_a, round_trip(&assert_ping(pod_b, ip_a)));
    assert_tcp(pod_a, pod_b, ip_b);
    done("TCP  pod-a → pod-b", ip_b, None);
    assert_tcp(pod_b, pod_a, ip_a);
    done("TCP  pod-b → pod-a", ip_a, None);
    done("ping host → pod-a", ip_a, round_trip(&assert_ping(node, ip_a)));
    done("ping pod-a → host", host, round_trip(&assert_ping(pod_a, host)));
    assert_tcp(node, pod_b, ip_b);
    done("TCP  host → pod-b", ip_b, None);
    assert_tcp(pod_b, node, host);
    done("TCP  pod-b → host", host, None);
}

fn show_gateway(pod: &Pod<'_>, result: &Value) -> Result<()> {
    println!("  pod-a$ ip neigh");
    let neighbours = pod.run(&["ip", "neigh", "show", "dev", "eth0"]);
    indent(&neighbours);
    let mac = HOST_VETH_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for gateway in ["169.254.1.1", "fe80::ecee:eeff:feee:eeee"] {
        let known = neighbours.lines().any(|line| line.contains(gateway) && line.contains(&mac));
        ensure!(known, "pod-a has no neighbour {gateway} with MAC address {mac}");
    }
    let veth = result["interfaces"][0]["name"].as_str().context("host veth")?;
    let key = format!("/proc/sys/net/ipv4/conf/{veth}/proxy_arp");
    let proxy_arp = fs::read_to_string(&key)?.trim().to_owned();
    println!("  host$  cat {key}\n    {proxy_arp}");
    ensure!(proxy_arp == "0", "proxy_arp is {proxy_arp}");
    Ok(())
}

fn show_maps(node: &Node) -> Result<()> {
    let maps = node.pins().join("maps");
    for name in [map_name::PODS_V4, map_name::PODS_V6] {
        let pin = maps.join(name);
        println!("  host$ bpftool map dump pinned …/maps/{name}");
        let dump = run(&["bpftool", "map", "dump", "pinned", pin.to_str().context("path")?]);
        indent(&dump);
        ensure!(dump.contains("pod_mac"), "the dump of {name} has no field names");
    }
    Ok(())
}

fn show_counters(node: &Node) -> Result<()> {
    let stats = node.datapath().stats()?;
    for (counter, traffic) in &stats {
        if traffic.packets > 0 {
            let (packets, bytes) = (traffic.packets, traffic.bytes);
            println!("  {:<20} {packets:>8} packets {bytes:>10} bytes", counter.name());
        }
    }
    for fast in [Counter::DirectV4, Counter::DirectV6] {
        let packets = stats.iter().find(|(row, _)| *row == fast).map_or(0, |(_, row)| row.packets);
        ensure!(packets > 0, "no packet took the fast path ({})", fast.name());
    }
    Ok(())
}

fn look_for_remains(node: &Node) -> Result<()> {
    title("What is left");
    let links = node.pod_links();
    ensure!(links.is_empty(), "links are left: {links:?}");
    let entries = node.datapath().pods().entries()?;
    ensure!(entries.is_empty(), "map entries are left: {entries:?}");
    let store = node.store();
    let network = network(node)?;
    let name = network["name"].as_str().context("name")?;
    ensure!(store.endpoints(name)?.is_empty(), "endpoints are left");
    let ipam = margay_datastore::Ipam::new(&store, "demo", "demo");
    ensure!(ipam.attachments(name)?.is_empty(), "addresses are left");
    println!("  no link, no map entry, no endpoint, no address");
    println!("\nAll of it works on this machine.");
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn indent(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The median line of ping's summary: `rtt min/avg/max/mdev = 0.031/…`.
fn round_trip(output: &str) -> Option<String> {
    let summary = output.lines().find(|line| line.starts_with("rtt"))?;
    let average = summary.split('/').nth(4)?;
    Some(format!("  {average} ms"))
}
