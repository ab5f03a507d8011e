//! What the programs know and have counted.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use ipnetwork::IpNetwork;
use margay::result::mac_text;
use margay_datapath::{Datapath, FlowEntry, Remote, remote_mode};
use serde_json::{Value, json};

use super::archive::Archive;
use crate::commands::datapath::flows;
use crate::doctor::Picture;

pub(super) fn add(
    archive: &mut Archive,
    picture: &Picture<'_>,
    with_flows: bool,
) -> io::Result<()> {
    let root = &picture.paths().bpffs_root;
    let pods: Vec<Value> = picture.entries.iter().flatten().map(|(address, entry)| {
        json!({"address": address, "ifindex": entry.ifindex, "mtu": entry.mtu, "flags": entry.flags})
    }).collect();
    archive.json("maps/pods.json", &pods)?;
    let remote = |(prefix, remote): (&IpNetwork, &Remote)| {
        json!({
            "prefix": prefix, "node": Ipv6Addr::from(remote.node).to_canonical(), "mtu": remote.mtu,
            "mode": if remote.mode == remote_mode::VXLAN { "vxlan" } else { "plain" },
            "mac": mac_text(remote.mac),
        })
    };
    archive.json("maps/remotes.json", &picture.remotes.iter().map(remote).collect::<Vec<_>>())?;
    let Some(datapath) = opened(root) else { return Ok(()) };
    let stats = datapath.stats().unwrap_or_default();
    let stats: Value = stats
        .into_iter()
        .map(|(counter, traffic)| {
            let row = json!({"packets": traffic.packets, "bytes": traffic.bytes});
            (format!("{counter:?}"), row)
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    archive.json("maps/stats.json", &stats)?;
    let settings = datapath.settings().map(|settings| format!("{settings:?}"));
    archive.text("maps/settings.txt", &settings.unwrap_or_else(|error| error.to_string()))?;
    let flows: Vec<FlowEntry> =
        datapath.flows().entries().unwrap_or_default().into_iter().collect();
    archive.json("maps/flows.json", &counted(&datapath, picture, &flows))?;
    match with_flows {
        true => archive.json("maps/every_flow.json", &flows::Remembered::of(&flows)),
        false => Ok(()),
    }
}

/// How many of each kind there are: without an address, so that nobody learns who speaks with whom.
fn counted(datapath: &Datapath, picture: &Picture<'_>, flows: &[FlowEntry]) -> Value {
    let is_local = |end: &SocketAddr| {
        picture.entries.as_ref().is_some_and(|entries| entries.contains_key(&end.ip()))
    };
    let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
    for flow in flows {
        let family = if flow.ends[0].is_ipv4() { "ipv4" } else { "ipv6" };
        let local_ends = flow.ends.iter().filter(|end| is_local(end)).count();
        let kind = (family, flows::protocol(flow), flows::verdict_name(flow.verdict), local_ends);
        *kinds.entry(kind).or_default() += 1;
    }
    let kind = |((family, protocol, verdict, local_ends), count)| {
        json!({
            "family": family, "protocol": protocol, "verdict": verdict,
            "ends_that_are_pods_here": local_ends, "flows": count,
        })
    };
    let fill =
        |ipv4| datapath.flows().fill(ipv4).ok().map(|(used, of)| json!({"used": used, "of": of}));
    json!({
        "ipv4": fill(true), "ipv6": fill(false),
        "kinds": kinds.into_iter().map(kind).collect::<Vec<_>>(),
    })
}

fn opened(root: &Path) -> Option<Datapath> {
    Datapath::open_builds(root).ok()?.into_iter().next()
}
