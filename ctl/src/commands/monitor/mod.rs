//! `margayctl monitor`: what the programs drop, and which way flows go, as it happens.
//!
//! The programs tell a reporter that this command loads (`margay_datapath::Monitor`), which picks out what was
//! asked for and keeps to the rate; here that becomes lines. Invariant: what becomes of packets is the same with and
//! without it, and when it ends, however it does, the programs tell nobody any more.

mod line;
mod names;

use std::fs;
use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnetwork::IpNetwork;
use margay::netlink::Netlink;
use margay_abi::Counter;
use margay_datapath::{Missed, Monitor, Selection};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::arguments::{CENTURY, seconds};
use crate::failure::Failure;
use crate::node::Node;
use crate::output::Format;
use line::{Clock, Line, lines};
use names::Names;

/// How often the programs are told that somebody listens still.
const RENEWAL: Duration = Duration::from_secs(1);

/// Packets that the programs drop, and flows that change their way, as it happens. Needs root
///
/// Several may run at once; each is told all that it asks for. What becomes of packets does not change, and when no monitor
/// runs, the programs tell nothing. The kernel keeps to the rate, and what it keeps back is counted.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Of this pod alone, by its interface and addresses; it goes by what `endpoint show` takes. May be repeated
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    /// From or to this address or network alone. May be repeated
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpNetwork>,
    /// Drops for this reason alone, and no flows. May be repeated
    #[arg(long, value_enum, value_name = "REASON")]
    reason: Vec<Reason>,
    /// Events of this kind alone
    #[arg(long, value_enum, conflicts_with = "reason")]
    event: Option<Kind>,
    /// Events in a second that each CPU tells at most; the others are counted
    #[arg(long, value_name = "EVENTS", default_value = "1000")]
    rate: NonZeroU32,
    /// End after this many events
    #[arg(short = 'c', long, value_name = "EVENTS")]
    count: Option<NonZeroU32>,
    /// End after this time, in seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A packet is dropped
    Drop,
    /// A flow gets a verdict, or another one
    Flow,
}

/// Why a packet is dropped, named as its counter without `drop_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Reason {
    /// The source address is not the pod's
    SpoofedSource,
    /// An ARP request that must not be answered
    ArpIgnored,
    /// Headers that contradict each other
    Malformed,
    /// A router advertisement or redirect of IPv6
    RouterMessage,
    /// For the overlay's port
    Encapsulated,
}

impl Reason {
    const fn counter(self) -> Counter {
        match self {
            Self::SpoofedSource => Counter::DropSpoofedSource,
            Self::ArpIgnored => Counter::DropArpIgnored,
            Self::Malformed => Counter::DropMalformed,
            Self::RouterMessage => Counter::DropRouterMessage,
            Self::Encapsulated => Counter::DropEncapsulated,
        }
    }
}

pub(crate) async fn run(
    arguments: &Arguments,
    node: &Node,
    format: Format,
) -> Result<ExitCode, Failure> {
    // Says better than the reporter what is missing where nothing is loaded.
    drop(node.datapaths()?);
    let paths = node.settings()?.paths;
    let names = Names::new(node, Netlink::open()?).await;
    let selection = arguments.selection(&names)?;
    let monitor = Monitor::start(&paths.bpffs_root, &paths.run_dir.join("load"), &selection)?;
    names.warn(&paths.bpffs_root).await;
    #[expect(deprecated, reason = "its successor is unsafe; a monitor keeps its descriptor")]
    let events = AsyncFd::new(monitor).map_err(Failure::Output)?;
    let listener = Listener {
        events,
        names,
        clock: Clock::new(),
        format,
        left: arguments.count.map_or(u32::MAX, NonZeroU32::get),
        only: arguments.event,
    };
    listener.listen(arguments.duration).await?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn selection(&self, names: &Names) -> Result<Selection, Failure> {
        let reasons: &[Reason] =
            if self.reason.is_empty() { Reason::value_variants() } else { &self.reason };
        let (mut pod_links, mut pod_addresses) = (Vec::new(), Vec::new());
        for pod in &self.pod {
            let (link, addresses) = names.of_pod(pod)?;
            pod_links.extend(link);
            pod_addresses.extend(addresses);
        }
        let drops = reasons.iter().map(|reason| reason.counter());
        Ok(Selection {
            drops: if self.event == Some(Kind::Flow) { Vec::new() } else { drops.collect() },
            flows: self.reason.is_empty() && self.event != Some(Kind::Drop),
            pod_links,
            pod_addresses,
            addresses: self.address.clone(),
            rate: self.rate.get(),
        })
    }
}

struct Listener {
    events: AsyncFd<Monitor>,
    names: Names,
    clock: Clock,
    format: Format,
    /// Events that are to be shown still.
    left: u32,
    only: Option<Kind>,
}

impl Listener {
    /// Until the time is over, enough is shown, nobody reads any more, or a signal comes.
    async fn listen(mut self, duration: Option<Duration>) -> Result<(), Failure> {
        let mut interrupted = signal(SignalKind::interrupt()).map_err(Failure::Output)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(Failure::Output)?;
        let mut hung_up = match is_hangup_ignored() {
            true => None,
            false => Some(signal(SignalKind::hangup()).map_err(Failure::Output)?),
        };
        eprintln!("listening; Ctrl-C ends");
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = Instant::now() + duration.unwrap_or(CENTURY);
        while self.left > 0 && is_read() {
            tokio::select! {
                ready = self.events.readable() => {
                    ready.map_err(Failure::Output)?.clear_ready();
                    self.show_events().await?;
                }
                _ = renewal.tick() => self.renew().await?,
                () = sleep_until(end) => break,
                _ = interrupted.recv() => break,
                _ = terminated.recv() => break,
                Some(()) = async { hung_up.as_mut()?.recv().await } => break,
            }
        }
        self.show_events().await?;
        if self.left == 0 {
            return Ok(());
        }
        let missed = self.events.get_mut().stop()?;
        self.show_events().await?;
        self.show_missed(&missed)
    }

    async fn show_events(&mut self) -> Result<(), Failure> {
        for event in self.events.get_mut().drain() {
            for line in lines(&event, &mut self.names, &self.clock).await {
                if self.left == 0 || self.only.is_some_and(|kind| !line.is(kind)) {
                    continue;
                }
                self.show(&line)?;
                self.left -= 1;
            }
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        let missed = self.events.get_mut().renew()?;
        self.show_events().await?;
        self.show_missed(&missed)
    }

    fn show_missed(&self, missed: &Missed) -> Result<(), Failure> {
        match Line::missed(missed, &self.clock) {
            Some(line) => self.show(&line),
            None => Ok(()),
        }
    }

    fn show(&self, line: &Line) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::Output(io::Error::other(error.to_string()));
        let text = match self.format {
            Format::Table => line.text(),
            Format::Json => serde_json::to_string(line).map_err(|error| failed(&error))?,
            Format::Yaml => {
                let document = yaml_serde::to_string(line).map_err(|error| failed(&error))?;
                format!("---\n{}", document.trim_end())
            }
        };
        let mut out = anstream::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::Output)
    }
}

/// As below `nohup`.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let signals = ignored.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    // The lowest bit is signal 1.
    signals.is_some_and(|signals| signals >> (SignalKind::hangup().as_raw_value() - 1) & 1 != 0)
}

/// Whether anybody can read what is printed; looked at with every renewal, since a pipe is written to when
/// there is something to tell.
fn is_read() -> bool {
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
    let now = rustix::time::Timespec::default();
    poll(&mut ends, Some(&now)).is_err() || !ends[0].revents().contains(PollFlags::ERR)
}
