//! What a sequence consists of, and how one is drawn from a seed.
//!
//! Invariant: every step means something after every other, so that a sequence from which steps
//! were taken out is a sequence still.

use std::fmt;
use std::time::Duration;

use margay_datastore::Attachment;

/// The phases of an ADD, in their order.
pub(crate) const ADD_PHASES: [&str; 13] = [
    "open",
    "look_up",
    "dataplane",
    "mtu",
    "addresses",
    "veth",
    "pod_side",
    "host_side",
    "attach",
    "link_up",
    "routes",
    "map",
    "endpoint",
];
/// The phases of a DEL.
pub(crate) const DEL_PHASES: [&str; 3] = ["open", "teardown", "upkeep"];
/// The phases of a GC.
pub(crate) const GC_PHASES: [&str; 4] = ["gather", "teardown", "map", "ipam"];

/// Names of sandboxes: as many as a sequence can have.
pub(crate) const SANDBOXES: usize = 16;

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Network {
    /// Two IPv4 pools, attached by clsact.
    Blue,
    /// One IPv4 pool of two blocks, attached by TCX, with a limited bandwidth.
    Green,
}

impl Network {
    pub(crate) const ALL: [Self; 2] = [Self::Blue, Self::Green];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

/// What a sandbox can be attached to, and by which interface. The last two want one name.
const INTERFACES: [(Network, &str); 3] =
    [(Network::Green, "net1"), (Network::Blue, "eth0"), (Network::Green, "eth0")];

/// An attachment that a sequence can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) sandbox: usize,
    interface: usize,
}

impl Slot {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..SANDBOXES).flat_map(Self::of)
    }

    /// The slots of one sandbox.
    pub(crate) fn of(sandbox: usize) -> impl Iterator<Item = Self> {
        (0..INTERFACES.len()).map(move |interface| Self { sandbox, interface })
    }

    pub(crate) fn network(self) -> Network {
        INTERFACES[self.interface].0
    }

    pub(crate) fn ifname(self) -> &'static str {
        INTERFACES[self.interface].1
    }

    pub(crate) fn attachment(self) -> Attachment {
        Attachment::new(self.network().name(), container_id(self.sandbox), self.ifname())
            .expect("attachment")
    }
}

/// The container ID of a sandbox.
pub(crate) fn container_id(sandbox: usize) -> String {
    format!("c{sandbox}")
}

/// What becomes of a verb on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nothing.
    Never,
    /// An error at the beginning of a phase.
    Fail(&'static str),
    /// Its process is killed at the beginning of a phase.
    Kill(&'static str),
    /// Its process is killed when it has made this many changes, wherever that is.
    KillBefore(usize),
    /// Its process is killed after a time.
    KillAfter(Duration),
    /// The next change after this many is refused with an errno.
    Refuse(usize, i32),
}

/// Errors that say nothing about the thing that was to be changed: disk full, busy, no memory, not
/// permitted, map full.
const ERRNOS: [i32; 5] = [28, 16, 12, 1, 7];

/// One thing that a runtime does, or that happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes the sandbox where there is none.
    Add(Slot, Stop),
    /// An ADD of a sandbox that may be gone by then.
    LateAdd(Slot),
    Del(Slot, Stop),
    Gc(Network, Stop),
    Check(Slot),
    Status(Network),
    /// The namespace goes without any DEL; the runtime may forget the attachments as well.
    EndSandbox {
        sandbox: usize,
        forgotten: bool,
    },
    DeleteHostVeth(Slot),
    DeleteMapEntry {
        slot: Slot,
        ipv4: bool,
    },
    /// Another boot. Sandboxes whose bit is set have a namespace afterwards, an empty one.
    Reboot {
        remade: u32,
    },
    /// A ping between two of the pods that can be expected to answer.
    Ping {
        from: usize,
        to: usize,
        ipv4: bool,
    },
}

impl Step {
    /// The attachment that it is about.
    pub(crate) fn slot(&self) -> Option<Slot> {
        match *self {
            Self::Add(slot, _)
            | Self::LateAdd(slot)
            | Self::Del(slot, _)
            | Self::Check(slot)
            | Self::DeleteHostVeth(slot)
            | Self::DeleteMapEntry { slot, .. } => Some(slot),
            _ => None,
        }
    }

    /// The same step, stopped in another way.
    pub(crate) fn stopped(self, stop: Stop) -> Self {
        match self {
            Self::Add(slot, _) => Self::Add(slot, stop),
            Self::Del(slot, _) => Self::Del(slot, stop),
            Self::Gc(network, _) => Self::Gc(network, stop),
            other => other,
        }
    }

    /// How its verb is stopped.
    pub(crate) fn stop(&self) -> Stop {
        match *self {
            Self::Add(_, stop) | Self::Del(_, stop) | Self::Gc(_, stop) => stop,
            _ => Stop::Never,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(slot, stop) => write!(f, "ADD {}{stop}", slot.attachment()),
            Self::LateAdd(slot) => write!(f, "late ADD {}", slot.attachment()),
            Self::Del(slot, stop) => write!(f, "DEL {}{stop}", slot.attachment()),
            Self::Gc(network, stop) => write!(f, "GC {}{stop}", network.name()),
            Self::Check(slot) => write!(f, "CHECK {}", slot.attachment()),
            Self::Status(network) => write!(f, "STATUS {}", network.name()),
            Self::EndSandbox { sandbox, forgotten } => {
                let forgotten = if *forgotten { ", and the runtime forgets it" } else { "" };
                write!(f, "sandbox {} ends{forgotten}", container_id(*sandbox))
            }
            Self::DeleteHostVeth(slot) => write!(f, "host veth of {} deleted", slot.attachment()),
            Self::DeleteMapEntry { slot, ipv4 } => {
                let family = if *ipv4 { "IPv4" } else { "IPv6" };
                write!(f, "{family} map entry of {} deleted", slot.attachment())
            }
            Self::Reboot { remade } => {
                write!(f, "reboot; made anew:")?;
                let sandboxes = (0..SANDBOXES).filter(|sandbox| remade & (1 << sandbox) != 0);
                sandboxes.into_iter().try_for_each(|it| write!(f, " {}", container_id(it)))
            }
            Self::Ping { from, to, ipv4 } => {
                let family = if *ipv4 { "IPv4" } else { "IPv6" };
                write!(f, "{family} ping from pod {from} to pod {to} of those that can")
            }
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => Ok(()),
            Self::Fail(phase) => write!(f, ", failing at {phase}"),
            Self::Kill(phase) => write!(f, ", killed at {phase}"),
            Self::KillBefore(changes) => write!(f, ", killed after {changes} changes"),
            Self::KillAfter(time) => write!(f, ", killed after {} us", time.as_micros()),
            Self::Refuse(changes, errno) => {
                write!(f, ", refused with errno {errno} after {changes} changes")
            }
        }
    }
}

/// A sequence.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Whether the pools are so small that they are soon used up.
    pub(crate) is_tight: bool,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    /// The sequence of a seed. Those of every fourth seed are killed at times as well, which are not
    /// the same from run to run.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random { state: seed, is_timed: seed % 4 == 3 };
        let mut added = Vec::new();
        let is_tight = random.one_in(2);
        let length = 30 + random.below(70);
        // In a small population the steps meet each other's remains more often.
        let sandboxes = 3 + random.below(SANDBOXES - 2);
        let steps = (0..length).map(|_| random.step(sandboxes, &mut added)).collect();
        Self { is_tight, steps }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} pools", if self.is_tight { "tight" } else { "wide" })?;
        let numbered = self.steps.iter().enumerate();
        numbered.into_iter().try_for_each(|(number, step)| writeln!(f, "{:4}. {step}", number + 1))
    }
}

/// A SplitMix64 generator: the same draws from the same seed, everywhere.
struct Random {
    state: u64,
    is_timed: bool,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn slot(&mut self, sandboxes: usize) -> Slot {
        // Half of the interfaces are the first one's.
        let interface = [0, 1, 1, 2][self.below(4)];
        Slot { sandbox: self.below(sandboxes), interface }
    }

    fn network(&mut self) -> Network {
        Network::ALL[self.below(2)]
    }

    /// A way to be stopped, for a verb that makes about this many changes.
    fn stop(&mut self, phases: &[&'static str], changes: usize) -> Stop {
        let phase = phases[self.below(phases.len())];
        match self.below(10) {
            0 => Stop::Fail(phase),
            1..3 => Stop::Kill(phase),
            3..7 => Stop::KillBefore(self.below(changes)),
            7..9 => Stop::Refuse(self.below(changes), ERRNOS[self.below(ERRNOS.len())]),
            _ if self.is_timed => Stop::KillAfter(Duration::from_micros(self.below(40_000) as u64)),
            _ => Stop::KillBefore(self.below(changes)),
        }
    }

    /// `added` are the attachments that an ADD was drawn for.
    fn step(&mut self, sandboxes: usize, added: &mut Vec<Slot>) -> Step {
        let any = self.slot(sandboxes);
        // Most of what follows an ADD is about something that may exist.
        let slot = match self.below(10) {
            0 => any,
            _ => added.get(self.below(added.len().max(1))).copied().unwrap_or(any),
        };
        match self.below(100) {
            0..32 => {
                added.push(any);
                Step::Add(any, Stop::Never)
            }
            32..46 => {
                added.push(any);
                Step::Add(any, self.stop(&ADD_PHASES, 50))
            }
            46..50 => Step::LateAdd(slot),
            50..59 => Step::Del(slot, Stop::Never),
            59..65 => Step::Del(slot, self.stop(&DEL_PHASES, 15)),
            65..68 => Step::Gc(self.network(), Stop::Never),
            68..71 => Step::Gc(self.network(), self.stop(&GC_PHASES, 12)),
            71..78 => Step::Check(slot),
            78..80 => Step::Status(self.network()),
            80..84 => Step::EndSandbox { sandbox: slot.sandbox, forgotten: self.one_in(2) },
            84..88 => Step::DeleteHostVeth(slot),
            88..92 => Step::DeleteMapEntry { slot, ipv4: self.one_in(2) },
            92..94 => Step::Reboot { remade: self.next() as u32 & self.next() as u32 },
            _ => Step::Ping {
                from: self.below(SANDBOXES),
                to: self.below(SANDBOXES),
                ipv4: self.one_in(2),
            },
        }
    }
}
