//! `margayctl endpoint list`: by their records.

use std::fmt;
use std::net::IpAddr;

use clap::Args;
use margay::result::mac_text;
use margay_datastore::{Endpoint, EndpointState};
use serde::Serialize;

use crate::arguments::Watched;
use crate::endpoints::name;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, GOOD, Report, Table, WARNING, age};

/// `endpoint list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Those of every node of the datastore
    #[arg(short = 'A', long)]
    all_nodes: bool,
    /// Those of one network alone
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Those of one namespace of pods alone
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Show more columns
    #[arg(long)]
    wide: bool,
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(list: &List, node: &Node, format: Format) -> Result<(), Failure> {
    let (store, nodename) = (node.store()?, node.settings()?.nodename);
    let look = async || {
        let mut endpoints = store.every_endpoint()?;
        endpoints.retain(|endpoint| list.shows(endpoint, &nodename));
        let endpoints = endpoints.iter().map(Row::from).collect();
        Ok(Endpoints { endpoints, is_wide: list.wide, has_nodes: list.all_nodes })
    };
    output::show_or_watch(&list.watched, format, look).await
}

impl List {
    fn shows(&self, endpoint: &Endpoint, nodename: &str) -> bool {
        let namespace = endpoint.pod.as_ref().map(|pod| pod.namespace.as_str());
        (self.all_nodes || endpoint.node == nodename)
            && self.network.as_deref().is_none_or(|name| endpoint.attachment.network() == name)
            && self.namespace.as_deref().is_none_or(|name| namespace == Some(name))
    }
}

/// What `endpoint list` shows.
#[derive(Debug, Serialize)]
struct Endpoints {
    endpoints: Vec<Row>,
    #[serde(skip)]
    is_wide: bool,
    #[serde(skip)]
    has_nodes: bool,
}

/// What its record says of an endpoint, in short.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) network: String,
    pub(crate) container_id: String,
    pub(crate) interface: String,
    pub(crate) namespace: Option<String>,
    pub(crate) pod: Option<String>,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_veth: String,
    pub(crate) pod_mac: String,
    pub(crate) mtu: u32,
    pub(crate) dataplane: String,
    pub(crate) attach: Option<String>,
    pub(crate) state: &'static str,
    pub(crate) created_at: u64,
    /// For people.
    #[serde(skip)]
    pub(crate) name: String,
}

impl From<&Endpoint> for Row {
    fn from(endpoint: &Endpoint) -> Self {
        let attachment = &endpoint.attachment;
        let pod = endpoint.pod.as_ref();
        Self {
            network: attachment.network().to_owned(),
            container_id: attachment.container_id().to_owned(),
            interface: attachment.ifname().to_owned(),
            namespace: pod.map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name.clone()),
            node: endpoint.node.clone(),
            addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
            host_veth: endpoint.host_veth.clone(),
            pod_mac: mac_text(endpoint.pod_mac),
            mtu: endpoint.mtu,
            dataplane: endpoint.dataplane.clone(),
            attach: endpoint.attach.clone(),
            state: match endpoint.state {
                EndpointState::Ready => "ready",
                EndpointState::Pending => "pending",
            },
            created_at: endpoint.created_at,
            name: name(endpoint),
        }
    }
}

impl Row {
    /// `ready` or `pending`, coloured.
    pub(crate) fn state(&self) -> Cell {
        Cell::styled(self.state, if self.state == "ready" { GOOD } else { WARNING })
    }

    /// All in one.
    pub(crate) fn addresses(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Report for Endpoints {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.is_wide {
            return write!(out, "{}", self.wide());
        }
        if self.has_nodes {
            let mut table = Table::new(["POD", "ADDRESSES", "NODE", "NETWORK", "STATE"]);
            for row in &self.endpoints {
                let cells = [&row.name, &row.addresses(), &row.node, &row.network];
                let [name, addresses, node, network] = cells.map(|text| text.clone().into());
                table.row([name, addresses, node, network, row.state()]);
            }
            return write!(out, "{table}");
        }
        let mut table = Table::new(["POD", "ADDRESSES", "HOST VETH", "NETWORK", "STATE"]);
        for row in &self.endpoints {
            let cells = [&row.name, &row.addresses(), &row.host_veth, &row.network];
            let [name, addresses, host_veth, network] = cells.map(|text| text.clone().into());
            table.row([name, addresses, host_veth, network, row.state()]);
        }
        write!(out, "{table}")
    }
}

impl Endpoints {
    fn wide(&self) -> Table {
        let mut table = Table::new([
            "POD",
            "ADDRESSES",
            "NODE",
            "HOST VETH",
            "NETWORK",
            "CONTAINER",
            "INTERFACE",
            "MTU",
            "DATAPLANE",
            "AGE",
            "STATE",
        ]);
        for row in &self.endpoints {
            let dataplane = match &row.attach {
                Some(attach) => format!("{} ({attach})", row.dataplane),
                None => row.dataplane.clone(),
            };
            table.row([
                row.name.clone().into(),
                row.addresses().into(),
                row.node.clone().into(),
                row.host_veth.clone().into(),
                row.network.clone().into(),
                row.container_id.chars().take(13).collect::<String>().into(),
                row.interface.clone().into(),
                Cell::number(row.mtu),
                dataplane.into(),
                Cell::number(age(row.created_at)),
                row.state(),
            ]);
        }
        table
    }
}
