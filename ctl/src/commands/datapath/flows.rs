//! `margayctl datapath flows`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::Args;
use margay_abi::flow_verdict;
use margay_datapath::FlowEntry;
use serde::Serialize;

use crate::arguments::Watched;
use crate::endpoints;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, GOOD, PLAIN, Report, Table};

/// `datapath flows`.
#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Those of one pod alone; it goes by what `endpoint show` takes
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Those of one address alone
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(arguments: &Flows, node: &Node, format: Format) -> Result<(), Failure> {
    let look = async || {
        let datapaths = node.datapaths()?;
        let pod = arguments.addresses_of_pod(node)?;
        let mut flows = Vec::new();
        if let Some(datapath) = datapaths.first() {
            let entries = datapath.flows().entries()?.into_iter();
            flows.extend(entries.filter(|flow| arguments.shows(flow, pod.as_deref())));
        }
        Ok(Remembered::of(&flows))
    };
    output::show_or_watch(&arguments.watched, format, look).await
}

impl Flows {
    fn addresses_of_pod(&self, node: &Node) -> Result<Option<Vec<IpAddr>>, Failure> {
        let Some(pod) = &self.pod else { return Ok(None) };
        let all = node.store()?.every_endpoint()?;
        let endpoint = endpoints::find(&all, pod)?;
        Ok(Some(endpoint.ips.iter().map(|ip| ip.ip()).collect()))
    }

    fn shows(&self, flow: &FlowEntry, pod: Option<&[IpAddr]>) -> bool {
        let has = |address: &IpAddr| flow.ends.iter().any(|end| end.ip() == *address);
        self.address.as_ref().is_none_or(has) && pod.is_none_or(|pod| pod.iter().any(has))
    }
}

/// What `datapath flows` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Remembered {
    flows: Vec<Row>,
}

impl Remembered {
    pub(crate) fn of(flows: &[FlowEntry]) -> Self {
        Self { flows: flows.iter().map(Row::from).collect() }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
    protocol: String,
    /// The end that is less; which of the two began is not remembered.
    first: End,
    second: End,
    /// `direct` or `via_stack`.
    verdict: &'static str,
}

#[derive(Debug, Serialize)]
struct End {
    address: IpAddr,
    port: u16,
}

impl From<&FlowEntry> for Row {
    fn from(flow: &FlowEntry) -> Self {
        let end = |end: SocketAddr| End { address: end.ip(), port: end.port() };
        let [first, second] = flow.ends.map(end);
        Self { protocol: protocol(flow), first, second, verdict: verdict_name(flow.verdict) }
    }
}

/// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
pub(crate) fn protocol(flow: &FlowEntry) -> String {
    match flow.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        number => number.to_string(),
    }
}

/// `direct` or `via_stack`.
pub(crate) fn verdict_name(verdict: u8) -> &'static str {
    match verdict {
        flow_verdict::DIRECT => "direct",
        flow_verdict::VIA_STACK => "via_stack",
        _ => "unknown",
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

impl Report for Remembered {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut table = Table::new(["PROTOCOL", "ONE END", "OTHER END", "VERDICT"]);
        for flow in &self.flows {
            let style = if flow.verdict == "direct" { GOOD } else { PLAIN };
            table.row([
                flow.protocol.clone().into(),
                flow.first.to_string().into(),
                flow.second.to_string().into(),
                Cell::styled(flow.verdict, style),
            ]);
        }
        write!(out, "{table}")
    }
}
