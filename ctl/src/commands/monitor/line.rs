//! An event as a line for people and as a document.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use margay::result::mac_text;
use margay_abi::Counter;
use margay_abi::event::{Event, Hook, event_has};
use margay_datapath::Missed;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::Kind;
use super::names::Names;
use crate::commands::datapath::flows::verdict_name;
use crate::output::{BAD, DIM, GOOD, WARNING, printable};

/// What a line shows. A document has all fields always.
#[derive(Debug, Default, Serialize)]
pub(super) struct Line {
    /// Seconds since the Unix epoch, with a fraction.
    time: f64,
    /// `drop`, `flow` or `missed`.
    event: &'static str,
    /// Why it was dropped.
    reason: Option<&'static str>,
    /// The verdict before: `none`, `direct` or `via_stack`.
    from: Option<&'static str>,
    /// The verdict that it has got.
    to: Option<&'static str>,
    hook: Option<&'static str>,
    interface: Option<String>,
    interface_index: Option<u32>,
    /// The pod behind the interface; at an interface to other nodes, the pod of this node.
    pod: Option<String>,
    /// Of a drop: a packet that has got its flow a verdict may have been given other addresses by then.
    source_mac: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `arp`, the number of an IP protocol, or the EtherType.
    protocol: Option<String>,
    source: Option<End>,
    destination: Option<End>,
    /// Length of the packet from the Ethernet header on.
    bytes: Option<u32>,
    missed: Option<Unseen>,
}

/// One end of a packet's way.
#[derive(Debug, Serialize)]
struct End {
    address: IpAddr,
    port: Option<u16>,
}

/// What was not told.
#[derive(Debug, Serialize)]
struct Unseen {
    /// Events beyond the rate.
    suppressed: u64,
    /// Events that came faster than they were read.
    lost: u64,
    /// Whether the monitor stood still, and the programs told nothing meanwhile.
    stood_still: bool,
}

/// The lines of an event: two, if a packet has given its flow a verdict and is dropped.
pub(super) async fn lines(event: &Event, names: &mut Names, clock: &Clock) -> Vec<Line> {
    let mut lines = Vec::new();
    let note = event.note;
    if let Some(reason) = reason(note.dropped) {
        let line = Line::of(event, names, clock).await;
        lines.push(Line { event: "drop", reason: Some(reason), ..line });
    }
    if note.is != 0 {
        let line = Line::of(event, names, clock).await;
        let (from, to) = (Some(verdict(note.was)), Some(verdict(note.is)));
        lines.push(Line { event: "flow", from, to, source_mac: None, ..line });
    }
    lines
}

impl Line {
    async fn of(event: &Event, names: &mut Names, clock: &Clock) -> Self {
        let has = |bit| event.has & bit != 0;
        let end = |address: [u8; 16], port: [u8; 2]| {
            has(event_has::ADDRESSES).then(|| End {
                address: Ipv6Addr::from(address).to_canonical(),
                port: has(event_has::PORTS).then(|| u16::from_be_bytes(port)),
            })
        };
        let (source, destination) =
            (end(event.src, event.src_port), end(event.dst, event.dst_port));
        let hook = Hook::ALL.into_iter().find(|hook| *hook as u8 == event.note.hook);
        // At a pod's own interface the addresses may be another pod's.
        let ends = [&destination, &source].into_iter().filter(|_| hook.is_some_and(is_of_the_node));
        let addresses: Vec<_> = ends.flatten().map(|end| end.address).collect();
        let (interface, pod) = names.of(event.ifindex, &addresses).await;
        Self {
            time: clock.seconds(event.at_ns),
            hook: hook.map(Hook::name),
            pod,
            interface,
            interface_index: Some(event.ifindex),
            source_mac: Some(mac_text(event.mac)),
            protocol: Some(protocol(event)),
            source,
            destination,
            bytes: Some(event.bytes),
            ..Self::default()
        }
    }

    /// `None` if nothing was missed.
    pub(super) fn missed(missed: &Missed, clock: &Clock) -> Option<Self> {
        let Missed { suppressed, lost, lapsed } = *missed;
        (suppressed > 0 || lost > 0 || lapsed).then(|| Self {
            time: clock.now(),
            event: "missed",
            missed: Some(Unseen { suppressed, lost, stood_still: lapsed }),
            ..Self::default()
        })
    }

    pub(super) fn is(&self, kind: Kind) -> bool {
        match kind {
            Kind::Drop => self.event == "drop",
            Kind::Flow => self.event == "flow",
        }
    }

    pub(super) fn text(&self) -> String {
        let time = time_of_day(self.time);
        if let Some(Unseen { suppressed, lost, stood_still }) = &self.missed {
            let mut what = Vec::new();
            if *suppressed > 0 {
                what.push(format!("{suppressed} events beyond the rate"));
            }
            if *lost > 0 {
                what.push(format!("{lost} that came faster than they were read"));
            }
            if *stood_still {
                what.push("what happened while this stood still".to_owned());
            }
            let what = what.join(", ");
            return format!("{DIM}{time}{DIM:#} {WARNING}missed{WARNING:#} {what}");
        }
        let what = match (self.reason, self.from, self.to) {
            (Some(reason), ..) => format!("{BAD}drop{BAD:#} {reason}"),
            (None, Some(from), Some(to)) => {
                let style = if to == "direct" { GOOD } else { WARNING };
                format!("{style}flow{style:#} {from} to {to}")
            }
            _ => self.event.to_owned(),
        };
        let pod = self.pod.as_deref().unwrap_or("-");
        let (hook, bytes) = (self.hook.unwrap_or("-"), self.bytes.unwrap_or_default());
        let interface = self.interface.as_deref().unwrap_or("-");
        let (pod, interface) = (printable(pod), printable(interface));
        let way = self.way();
        format!(
            "{DIM}{time}{DIM:#} {what} {pod}: {way} {DIM}at {hook} of {interface}, {bytes} bytes{DIM:#}"
        )
    }

    fn way(&self) -> String {
        let protocol = self.protocol.as_deref().unwrap_or("-");
        match (&self.source, &self.destination) {
            (Some(source), Some(destination)) => {
                format!("{protocol} {} > {}", source.text(), destination.text())
            }
            _ => {
                format!("{protocol} from {}", self.source_mac.as_deref().unwrap_or("-"))
            }
        }
    }
}

impl End {
    fn text(&self) -> String {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).to_string(),
            None => self.address.to_string(),
        }
    }
}

/// Whether it is at an interface to other nodes.
const fn is_of_the_node(hook: Hook) -> bool {
    match hook {
        Hook::FromPod | Hook::ToPod | Hook::PodToNode => false,
        Hook::FromOverlay | Hook::ToOverlay | Hook::FromUplink | Hook::ToUplink => true,
    }
}

fn reason(dropped: u8) -> Option<&'static str> {
    let counter = Counter::ALL.into_iter().find(|counter| *counter as u32 == u32::from(dropped))?;
    counter.name().strip_prefix("drop_")
}

fn verdict(verdict: u8) -> &'static str {
    if verdict == 0 { "none" } else { verdict_name(verdict) }
}

fn protocol(event: &Event) -> String {
    if event.has & event_has::PROTOCOL == 0 {
        return match event.ethertype {
            [0x08, 0x06] => "arp".to_owned(),
            [high, low] => format!("0x{high:02x}{low:02x}"),
        };
    }
    let name = match event.protocol {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        number => return number.to_string(),
    };
    name.to_owned()
}

/// Turns times since boot into times of day.
pub(super) struct Clock {
    /// The Unix epoch's distance from boot, as it was when this was made.
    boot: Duration,
}

impl Clock {
    pub(super) fn new() -> Self {
        let since_boot = clock_gettime(ClockId::Monotonic);
        let since_boot = Duration::new(
            since_boot.tv_sec.cast_unsigned(),
            u32::try_from(since_boot.tv_nsec).unwrap_or_default(),
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { boot: now.saturating_sub(since_boot) }
    }

    fn seconds(&self, at_ns: u64) -> f64 {
        let at = self.boot + Duration::from_nanos(at_ns);
        // A document shows no more than there is to know.
        Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or_default()).as_secs_f64()
    }

    #[expect(clippy::unused_self, reason = "the one place that tells times")]
    fn now(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs_f64()
    }
}

/// In UTC, as far as milliseconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
fn time_of_day(time: f64) -> String {
    let milliseconds = (time * 1000.0) as u64;
    let seconds = milliseconds / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_has_a_reason_and_nothing_else_has_one() {
        let reasons: Vec<_> =
            (0..=u8::MAX).filter_map(|number| Some((number, reason(number)?))).collect();

        let names: Vec<_> = reasons.iter().map(|(_, name)| *name).collect();
        assert_eq!(
            names,
            ["spoofed_source", "arp_ignored", "malformed", "router_message", "encapsulated"]
        );
    }

    #[test]
    fn a_time_is_shown_as_of_day() {
        assert_eq!(time_of_day(86_400.0 * 3.0 + 3_661.25), "01:01:01.250");
    }

    #[test]
    fn what_was_missed_is_told_by_its_cause() {
        let clock = Clock::new();
        let missed = Missed { suppressed: 5, lost: 0, lapsed: true };

        assert!(Line::missed(&Missed::default(), &clock).is_none());
        let text = Line::missed(&missed, &clock).map(|line| line.text()).unwrap_or_default();
        assert!(text.contains("5 events beyond the rate, what happened while"), "{text}");
    }
}
