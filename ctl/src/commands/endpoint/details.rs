//! `margayctl endpoint show`: the record of an endpoint, and what the kernel, the pod and the maps have of
//! it at this moment. `margayctl doctor` judges; this shows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use ipnetwork::IpNetwork;
use margay::netlink::{LinkInfo, Netlink, ROUTE_PROTOCOL, RouteInfo};
use margay::netns::Netns;
use margay::result::mac_text;
use margay::{dataplane, error, naming, pod};
use margay_datapath::{AttachMode, Datapath, Program};
use margay_datastore::{Endpoint, EndpointPort, RateLimit};
use serde::Serialize;

use super::Row;
use crate::arguments::Watched;
use crate::endpoints;
use crate::failure::Failure;
use crate::node::{Node, Settings};
use crate::output::{self, BOLD, Format, Report, WARNING, age, bit_rate, bytes, printable};

/// `endpoint show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A pod (NAMESPACE/NAME or NAME), an address, a container ID, a host veth or an attachment
    #[arg(value_name = "POD|ADDRESS|CONTAINER|VETH")]
    endpoint: String,
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(show: &Show, node: &Node, format: Format) -> Result<(), Failure> {
    let (store, settings) = (node.store()?, node.settings()?);
    let netlink = Netlink::open()?;
    let look = async || {
        let all = store.every_endpoint()?;
        let endpoint = endpoints::find(&all, &show.endpoint)?;
        let mut details = Details::of(endpoint);
        if endpoint.node == settings.nodename {
            details.look_at_host(endpoint, &settings, &netlink).await;
            details.look_into_pod(endpoint);
        } else {
            details.unseen.push(format!(
                "interfaces, routes, map entries and programs are on node {}: ask there",
                endpoint.node
            ));
        }
        Ok(details)
    };
    output::show_or_watch(&show.watched, format, look).await
}

/// What `endpoint show` shows.
#[derive(Debug, Serialize)]
struct Details {
    #[serde(flatten)]
    row: Row,
    pod_uid: Option<String>,
    host_mac: String,
    netns: String,
    boot_id: String,
    labels: BTreeMap<String, String>,
    ports: Vec<EndpointPort>,
    /// What was asked for.
    bandwidth: Limits,
    /// What limits it.
    token_buckets: Buckets,
    host_interface: Option<Interface>,
    pod_interface: Option<Interface>,
    pod_addresses: Vec<IpNetwork>,
    pod_routes: Vec<Route>,
    host_routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    map_entries: Vec<MapEntry>,
    programs: Vec<Attached>,
    /// What could not be looked at, and why.
    unseen: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Limits {
    to_pod: Option<RateLimit>,
    from_pod: Option<RateLimit>,
}

#[derive(Debug, Default, Serialize)]
struct Buckets {
    to_pod: Option<Bucket>,
    from_pod: Option<Bucket>,
}

#[derive(Debug, Serialize)]
struct Bucket {
    interface: String,
    rate_bytes_per_s: u64,
    queue_bytes: u32,
}

#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    index: u32,
    kind: String,
    mac: String,
    mtu: u32,
    up: bool,
    alias: Option<String>,
}

#[derive(Debug, Serialize)]
struct Route {
    destination: String,
    gateway: Option<IpAddr>,
    interface_index: Option<u32>,
    protocol: u8,
}

#[derive(Debug, Serialize)]
struct Neighbour {
    address: IpAddr,
    mac: Option<String>,
    permanent: bool,
}

#[derive(Debug, Serialize)]
struct MapEntry {
    address: IpAddr,
    interface_index: u32,
    mtu: u32,
    flags: Vec<&'static str>,
    pod_mac: String,
    host_mac: String,
}

#[derive(Debug, Serialize)]
struct Attached {
    program: &'static str,
    id: u32,
    attach: &'static str,
    /// Of which pinned build it is; none if of no build that is pinned.
    build: Option<String>,
}

impl Details {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            row: Row::from(endpoint),
            pod_uid: endpoint.pod.as_ref().and_then(|pod| pod.uid.clone()),
            host_mac: mac_text(endpoint.host_mac),
            netns: endpoint.netns.clone(),
            boot_id: endpoint.boot_id.clone(),
            labels: endpoint.labels.clone(),
            ports: endpoint.ports.clone(),
            bandwidth: Limits {
                to_pod: endpoint.bandwidth.to_pod,
                from_pod: endpoint.bandwidth.from_pod,
            },
            token_buckets: Buckets::default(),
            host_interface: None,
            pod_interface: None,
            pod_addresses: Vec::new(),
            pod_routes: Vec::new(),
            host_routes: Vec::new(),
            neighbours: Vec::new(),
            map_entries: Vec::new(),
            programs: Vec::new(),
            unseen: Vec::new(),
        }
    }

    /// What could be looked at, or a line that says why it could not.
    fn seen<T, E: std::error::Error>(&mut self, what: &str, looked: Result<T, E>) -> Option<T> {
        looked.map_err(|failed| self.unseen.push(format!("{what}: {}", error::chain(&failed)))).ok()
    }

    async fn look_at_host(&mut self, endpoint: &Endpoint, settings: &Settings, netlink: &Netlink) {
        let link = netlink.link_by_name(&endpoint.host_veth).await;
        let link = self.seen("host veth", link).flatten();
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            let route = netlink.route_to(ip).await;
            let route = self.seen("host routes", route).flatten();
            self.host_routes.extend(route.map(Route::from));
        }
        self.look_at_map_entries(endpoint, &settings.paths.bpffs_root);
        let Some(link) = link else { return };
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            let neighbour = netlink.neighbour(link.index, ip).await;
            let neighbour = self.seen("neighbours", neighbour).flatten();
            self.neighbours.extend(neighbour.map(|found| Neighbour {
                address: ip,
                mac: found.mac.map(mac_text),
                permanent: found.permanent,
            }));
        }
        self.look_at_buckets(endpoint, &link, netlink).await;
        if endpoint.dataplane == dataplane::EBPF {
            self.look_at_programs(&link, endpoint, &settings.paths.bpffs_root, netlink).await;
        }
        self.host_interface = Some(link.into());
    }

    fn look_at_map_entries(&mut self, endpoint: &Endpoint, root: &Path) {
        let Some(Some(pods)) = self.seen("map entries", dataplane::pods(root)) else { return };
        for ip in endpoint.ips.iter().map(|ip| ip.ip()) {
            let Some(Some(entry)) = self.seen("map entries", pods.get(ip)) else { continue };
            self.map_entries.push(MapEntry {
                address: ip,
                interface_index: entry.ifindex,
                mtu: entry.mtu,
                flags: dataplane::flag_names(entry.flags),
                pod_mac: mac_text(entry.pod_mac),
                host_mac: mac_text(entry.host_mac),
            });
        }
    }

    async fn look_at_buckets(&mut self, endpoint: &Endpoint, link: &LinkInfo, netlink: &Netlink) {
        self.token_buckets.to_pod = self.bucket(link, netlink).await;
        let ifb = netlink.link_by_name(&naming::ifb(&endpoint.attachment)).await;
        if let Some(Some(ifb)) = self.seen("ifb device", ifb) {
            self.token_buckets.from_pod = self.bucket(&ifb, netlink).await;
        }
    }

    async fn bucket(&mut self, link: &LinkInfo, netlink: &Netlink) -> Option<Bucket> {
        let bucket = netlink.token_bucket(link.index).await;
        self.seen("qdiscs", bucket).flatten().map(|bucket| Bucket {
            interface: link.name.clone(),
            rate_bytes_per_s: bucket.rate_bytes_per_s,
            queue_bytes: bucket.queue_bytes,
        })
    }

    async fn look_at_programs(
        &mut self,
        link: &LinkInfo,
        endpoint: &Endpoint,
        root: &Path,
        netlink: &Netlink,
    ) {
        let Some(builds) = self.seen("programs", Datapath::open_builds(root)) else { return };
        let pinned = self.seen("builds", Datapath::pinned_builds(root)).unwrap_or_default();
        let mode = Datapath::attach_mode_of(root, &endpoint.host_veth);
        let Some(datapath) = builds.first() else { return };
        let attached = datapath.inspect(netlink.handle(), link.index, mode).await;
        let Some(attached) = self.seen("programs", attached) else { return };
        for program in Program::OF_POD {
            let Some(id) = attached.get(program) else { continue };
            let build = pinned.iter().find(|build| build.programs.contains(&id));
            self.programs.push(Attached {
                program: program.name(),
                id: id.0,
                attach: match mode {
                    AttachMode::Clsact => "clsact",
                    AttachMode::Tcx => "tcx",
                },
                build: build.map(|build| build.build.clone()),
            });
        }
    }

    fn look_into_pod(&mut self, endpoint: &Endpoint) {
        let Some(netns) = self.seen("pod", Netns::open(Path::new(&endpoint.netns))) else { return };
        let ifname = endpoint.attachment.ifname().to_owned();
        let looked = pod::in_pod(&netns, async |netlink| {
            let link = pod::link(&netlink, &ifname).await?;
            let addresses = netlink.addresses(link.index).await?;
            let routes = netlink.routes(link.index).await?;
            Ok((link, addresses, routes))
        });
        let Some((link, addresses, routes)) = self.seen("pod", looked) else { return };
        self.pod_interface = Some(link.into());
        let prefixes =
            addresses.iter().map(|info| IpNetwork::new(info.address, info.prefix_length));
        self.pod_addresses = prefixes.flatten().collect();
        /// `RT_TABLE_MAIN`; what is in the table `local` follows from the addresses.
        const MAIN: u32 = 254;
        let main = routes.into_iter().filter(|route| route.table == MAIN);
        self.pod_routes = main.map(Route::from).collect();
    }
}

impl From<LinkInfo> for Interface {
    fn from(link: LinkInfo) -> Self {
        let LinkInfo { index, name, alias, mac, mtu, up, kind, peer: _ } = link;
        Self { name, index, kind, mac: mac_text(mac), mtu, up, alias }
    }
}

impl From<RouteInfo> for Route {
    fn from(route: RouteInfo) -> Self {
        let destination = match route.destination {
            Some(address) => format!("{address}/{}", route.prefix_length),
            None => "default".to_owned(),
        };
        let RouteInfo { gateway, ifindex, protocol, .. } = route;
        Self { destination, gateway, interface_index: ifindex, protocol }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, index, mac, mtu, up, .. } = self;
        write!(f, "{name} (index {index}), {mac}, MTU {mtu}, {}", if *up { "up" } else { "down" })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.destination)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))?;
        self.interface_index.map_or(Ok(()), |index| write!(f, " over interface {index}"))?;
        if self.protocol == ROUTE_PROTOCOL { f.write_str(", margay's") } else { Ok(()) }
    }
}

impl Report for Details {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let row = &self.row;
        writeln!(out, "{BOLD}{}{BOLD:#}", printable(&row.name))?;
        line(
            out,
            "attachment",
            format_args!("{}/{}/{}", row.network, row.container_id, row.interface),
        )?;
        line(out, "node", &row.node)?;
        line(out, "state", format_args!("{}, made {} ago", row.state, age(row.created_at)))?;
        line(out, "addresses", row.addresses())?;
        line(out, "namespace", &self.netns)?;
        for (key, value) in &self.labels {
            line(out, "label", format_args!("{key}={value}"))?;
        }
        for port in &self.ports {
            let to = port.host_port.map_or(String::new(), |port| format!(", the host's {port}"));
            line(out, "port", format_args!("{:?} {}{to}", port.protocol, port.port))?;
        }
        self.write_limits(out)?;
        let interfaces =
            [("pod interface", &self.pod_interface), ("host veth", &self.host_interface)];
        for (heading, interface) in interfaces {
            match interface {
                Some(interface) => line(out, heading, interface)?,
                None => line(out, heading, "not seen")?,
            }
        }
        each(out, "pod address", &self.pod_addresses)?;
        each(out, "pod route", &self.pod_routes)?;
        each(out, "host route", &self.host_routes)?;
        for neighbour in &self.neighbours {
            let Neighbour { address, mac, permanent } = neighbour;
            let kind = if *permanent { ", permanent" } else { "" };
            line(
                out,
                "neighbour",
                format_args!("{address} is {}{kind}", mac.as_deref().unwrap_or("-")),
            )?;
        }
        for entry in &self.map_entries {
            let MapEntry { address, interface_index, mtu, flags, pod_mac, .. } = entry;
            let flags =
                if flags.is_empty() { String::new() } else { format!(", {}", flags.join(", ")) };
            line(
                out,
                "map entry",
                format_args!("{address}: interface {interface_index}, {pod_mac}, MTU {mtu}{flags}"),
            )?;
        }
        for Attached { program, id, attach, build } in &self.programs {
            let build = build.as_deref().unwrap_or("that is not pinned");
            line(out, "program", format_args!("{program}, id {id}, by {attach}, build {build}"))?;
        }
        for unseen in &self.unseen {
            writeln!(out, "{WARNING}not seen:{WARNING:#} {}", printable(unseen))?;
        }
        Ok(())
    }
}

impl Details {
    fn write_limits(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let limits = [
            ("receives", &self.bandwidth.to_pod, &self.token_buckets.to_pod),
            ("sends", &self.bandwidth.from_pod, &self.token_buckets.from_pod),
        ];
        for (verb, limit, bucket) in limits {
            let Some(limit) = limit else { continue };
            let by = bucket.as_ref().map_or("nothing", |bucket| bucket.interface.as_str());
            let (rate, burst) = (bit_rate(limit.rate_bytes_per_s), bytes(limit.burst_bytes.into()));
            line(out, verb, format_args!("{rate} at most, bursts of {burst}, limited by {by}"))?;
        }
        Ok(())
    }
}

fn each(out: &mut dyn fmt::Write, heading: &str, values: &[impl fmt::Display]) -> fmt::Result {
    values.iter().try_for_each(|value| line(out, heading, value))
}

fn line(out: &mut dyn fmt::Write, heading: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(out, "  {heading:<14} {}", printable(&value.to_string()))
}
