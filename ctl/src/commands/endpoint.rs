//! `margayctl endpoint`: pods' interfaces, by their records.

use std::fmt;

use clap::{Args, Subcommand};
use margay_datastore::{Endpoint, EndpointState};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, GOOD, Report, Table, WARNING};

/// Pods' interfaces.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Those of this node
    List(List),
}

/// `endpoint list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    watched: Watched,
}

pub(crate) async fn run(command: &Command, node: &Node, format: Format) -> Result<(), Failure> {
    match command {
        Command::List(List { watched }) => {
            let (store, nodename) = (node.store()?, node.settings()?.nodename);
            let look = async || Ok(Endpoints { endpoints: store.endpoints_on(&nodename)? });
            output::show_or_watch(watched, format, look).await
        }
    }
}

/// What `endpoint list` shows.
#[derive(Debug, Serialize)]
struct Endpoints {
    endpoints: Vec<Endpoint>,
}

impl Report for Endpoints {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut table = Table::new(["POD", "ADDRESSES", "HOST VETH", "NETWORK", "STATE"]);
        for endpoint in &self.endpoints {
            let addresses: Vec<_> = endpoint.ips.iter().map(|ip| ip.ip().to_string()).collect();
            table.row([
                name(endpoint).into(),
                addresses.join(", ").into(),
                endpoint.host_veth.clone().into(),
                endpoint.attachment.network().into(),
                match endpoint.state {
                    EndpointState::Ready => Cell::styled("ready", GOOD),
                    EndpointState::Pending => Cell::styled("pending", WARNING),
                },
            ]);
        }
        write!(out, "{table}")
    }
}

/// What a person calls it: the pod, or the container where the runtime has named none.
pub(crate) fn name(endpoint: &Endpoint) -> String {
    match &endpoint.pod {
        Some(pod) if pod.namespace.is_empty() => pod.name.clone(),
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => endpoint.attachment.container_id().to_owned(),
    }
}
