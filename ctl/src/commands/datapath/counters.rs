//! `margayctl datapath counters`.

use std::fmt;
use std::time::Instant;

use clap::Args;
use margay_abi::{Counter, Traffic};
use serde::Serialize;

use crate::arguments::Watched;
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{self, Cell, Format, GOOD, PLAIN, Report, Table, WARNING, bytes};

/// `datapath counters`.
#[derive(Debug, Args)]
pub(crate) struct Counters {
    /// In the table also those that have counted nothing; a document has all
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    watched: Watched,
}

pub(super) async fn run(arguments: &Counters, node: &Node, format: Format) -> Result<(), Failure> {
    let mut before: Option<(Instant, Vec<(Counter, Traffic)>)> = None;
    let look = async || {
        let datapaths = node.datapaths()?;
        let (now, stats) = (
            Instant::now(),
            match datapaths.first() {
                Some(datapath) => datapath.stats()?,
                None => Vec::new(),
            },
        );
        let rate = |counter, traffic: &Traffic| {
            let (then, earlier) = before.as_ref()?;
            let (_, earlier) = earlier.iter().find(|(known, _)| *known == counter)?;
            Some(Rate::of(earlier, traffic, now.duration_since(*then).as_secs_f64()))
        };
        let rows = stats.iter().map(|(counter, traffic)| Row {
            name: counter.name(),
            packets: traffic.packets,
            bytes: traffic.bytes,
            rate: rate(*counter, traffic),
        });
        let rows = rows.collect();
        before = Some((now, stats));
        Ok(Counted { counters: rows, shows_all: arguments.all, has_rates: arguments.watched.watch })
    };
    output::show_or_watch(&arguments.watched, format, look).await
}

/// What `datapath counters` shows.
#[derive(Debug, Serialize)]
struct Counted {
    counters: Vec<Row>,
    #[serde(skip)]
    shows_all: bool,
    #[serde(skip)]
    has_rates: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    packets: u64,
    bytes: u64,
    /// Since the look before; none at the first.
    rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    packets_per_s: u64,
    bytes_per_s: u64,
}

impl Rate {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rate is rounded, and never negative"
    )]
    fn of(before: &Traffic, now: &Traffic, seconds: f64) -> Self {
        let rate =
            |before: u64, now: u64| (now.saturating_sub(before) as f64 / seconds).round() as u64;
        Self {
            packets_per_s: rate(before.packets, now.packets),
            bytes_per_s: rate(before.bytes, now.bytes),
        }
    }
}

impl Report for Counted {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let shown = || self.counters.iter().filter(|row| self.shows_all || row.packets > 0);
        let style = |row: &Row| match row.name {
            name if name.starts_with("drop_") => WARNING,
            name if name.starts_with("stack_") || name == "to_pod" => PLAIN,
            _ => GOOD,
        };
        if !self.has_rates {
            let mut table = Table::new(["COUNTER", "PACKETS", "BYTES"]);
            for row in shown() {
                let name = Cell::styled(row.name, style(row));
                table.row([name, Cell::number(row.packets), Cell::number(bytes(row.bytes))]);
            }
            return write!(out, "{table}");
        }
        let mut table = Table::new(["COUNTER", "PACKETS", "BYTES", "PACKETS/S", "BYTES/S"]);
        for row in shown() {
            let rate = |of: fn(Rate) -> String| Cell::number(row.rate.map_or("-".to_owned(), of));
            table.row([
                Cell::styled(row.name, style(row)),
                Cell::number(row.packets),
                Cell::number(bytes(row.bytes)),
                rate(|rate| rate.packets_per_s.to_string()),
                rate(|rate| bytes(rate.bytes_per_s)),
            ]);
        }
        write!(out, "{table}")
    }
}
