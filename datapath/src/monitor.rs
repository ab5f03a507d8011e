//! Listening to what the programs have to tell: drops, and verdicts that flows have got.
//!
//! Each who listens loads a reporter of its own, with its own maps and ring, puts it into a free slot of `tail_calls`,
//! and says in `settings` until when it listens. So each sees everything that it asked for, at its own rate.
//! Nothing is pinned but what was. Invariant: a slot belongs to whoever has its file locked, and that lock goes with the
//! process however it ends; what a killed one leaves is idle after [`PATIENCE`], and gone when another one
//! starts, renews or ends.

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aya::EbpfError;
use aya::maps::MapData;
use aya::programs::ProgramError;
use ipnetwork::IpNetwork;
use margay_abi::event::{Event, Interest, interest, tail_call};
use margay_abi::{Counter, Settings, map_name, program_name};
use rustix::time::{ClockId, clock_gettime};

use crate::bound::Bound;
use crate::bpf;
use crate::events::EventLog;
use crate::inventory::described;
use crate::maps::{self, MapError, RawTable, ReporterMaps, Slot};
use crate::object::Build;
use crate::pins::Pins;
use crate::{DatapathError, ProgramId};

/// How long after the last renewal the programs believe that somebody listens.
const PATIENCE: Duration = Duration::from_secs(5);

/// Within this an event that is counted is in the ring, if that has room: a program does both at once.
const MOMENT: Duration = Duration::from_millis(10);

/// Nobody can listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// This build has no kernel half.
    #[error(transparent)]
    Build(#[from] DatapathError),
    /// The reporter's maps cannot be made, or those that are pinned are not there.
    #[error("bind the reporter to the pinned maps")]
    Bind(#[source] Box<EbpfError>),
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused the reporter.
    #[error("load the program {}", program_name::REPORT)]
    Load(#[source] Box<ProgramError>),
    /// The ring of events cannot be read.
    #[error("open the reporter's events")]
    Log(#[source] Box<aya_log::Error>),
    /// What says whose a slot is cannot be had.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock file or its folder.
        path: PathBuf,
        #[source]
        /// Errno.
        source: io::Error,
    },
    /// Every slot is taken.
    #[error("{} others listen already, which is as many as can", tail_call::REPORTERS.len())]
    Full,
    /// The slot is not this one's any more, though it has locked it.
    #[error("another monitor, whose run_dir is another, took this one's place")]
    Displaced,
    /// The maps that the programs use are not those that are pinned.
    #[error("the dataplane was unloaded meanwhile")]
    Unloaded,
}

/// What one who listens wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Counters of the drops.
    pub drops: Vec<Counter>,
    /// Whether changes of flows' verdicts too.
    pub flows: bool,
    /// Of these pods alone, by their interfaces and addresses; all if both are empty.
    pub pod_links: Vec<u32>,
    /// See [`pod_links`](Self::pod_links).
    pub pod_addresses: Vec<IpAddr>,
    /// From or to these addresses alone; all if there are none.
    pub addresses: Vec<IpNetwork>,
    /// Events in a second, of each CPU.
    pub rate: u32,
}

/// What one who listens has not seen since it was told so last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Events beyond the rate.
    pub suppressed: u64,
    /// Events for which the ring had no room.
    pub lost: u64,
    /// Whether the programs told nothing for a time, because no renewal came. What that was is not counted.
    pub lapsed: bool,
}

/// One who listens, until dropped or [stopped](Self::stop). To be [renewed](Self::renew) every second or so.
/// Invariant: an event that the programs have told is drained once or counted as missed once.
pub struct Monitor {
    log: EventLog,
    /// Taken from the ring and not drained.
    backlog: Vec<Event>,
    own: ReporterMaps,
    common: Common,
    slot: u32,
    reporter: ProgramId,
    /// Says whose the slot is.
    seat: Option<File>,
    received: u64,
    /// When they were counted last.
    suppressed: u64,
    missing: u64,
    /// Those of which it was said.
    lost: u64,
    listens_until_ns: u64,
}

impl Monitor {
    /// Starts to listen. The maps are those pinned below `root`; files in `lock_dir` say which slots are taken.
    pub fn start(
        root: &Path,
        lock_dir: &Path,
        selection: &Selection,
    ) -> Result<Self, MonitorError> {
        let build = Build::embedded()?;
        let pins = Pins::new(root, "");
        maps::check_layouts(&pins)?;
        let common = Common::open(pins, lock_dir)?;

        let mut bound = Bound::reporting(build.object, &common.pins)
            .map_err(|source| MonitorError::Bind(Box::new(source)))?;
        let reporter = bound
            .load(program_name::REPORT)
            .map_err(|source| MonitorError::Load(Box::new(source)))?;
        let mut own = ReporterMaps::of(&mut bound)?;
        selection.write(&mut own)?;
        let id = described(&reporter, "prog_id").unwrap_or_default() as u32;
        let id = ProgramId(id);
        let log = EventLog::open(id).map_err(|source| MonitorError::Log(Box::new(source)))?;

        let (slot, seat) = common.take_slot(&reporter)?;
        let mut monitor = Self {
            log,
            backlog: Vec::new(),
            own,
            common,
            slot,
            reporter: id,
            seat: Some(seat),
            received: 0,
            suppressed: 0,
            missing: 0,
            lost: 0,
            listens_until_ns: u64::MAX,
        };
        monitor.renew()?;
        Ok(monitor)
    }

    /// Goes on listening. Says what was missed since the last time; what was not is there to be
    /// [drained](Self::drain).
    pub fn renew(&mut self) -> Result<Missed, MonitorError> {
        let is_switched_off = self.common.settings.get()? == Settings::default();
        let listens_until_ns = now_ns() + PATIENCE.as_nanos() as u64;
        self.common.listen_until(listens_until_ns)?;
        // A program that has found the time to be over did so before it was moved on.
        let lapsed = is_switched_off || now_ns() >= self.listens_until_ns;
        self.listens_until_ns = listens_until_ns;
        if !self.common.is_in_slot(self.slot, self.reporter)? {
            return Err(MonitorError::Displaced);
        }
        self.common.sweep(Some(self.slot))?;

        let before = self.missing;
        let suppressed = self.count()?;
        // What a program is about to put into the ring is there the next time.
        let lost = self.lose(self.missing.min(before));
        Ok(Missed { suppressed, lost, lapsed })
    }

    /// Listens no longer. Says what was missed since the last time, with which nothing is left unsaid.
    pub fn stop(&mut self) -> Result<Missed, MonitorError> {
        let Missed { suppressed, lost, lapsed } = self.renew()?;
        self.common.leave(self.slot, self.reporter)?;
        self.seat = None;
        thread::sleep(MOMENT);
        let suppressed = suppressed + self.count()?;
        let lost = lost + self.lose(self.missing);
        Ok(Missed { suppressed, lost, lapsed })
    }

    /// Counts what is missing. Returns how many events were beyond the rate since the last time.
    fn count(&mut self) -> Result<u64, MonitorError> {
        // Before the ring, so that what is told meanwhile is not missing.
        let quota = self.own.quota()?;
        self.take_events();
        self.missing = quota.all.saturating_sub(self.received);
        let before = mem::replace(&mut self.suppressed, quota.suppressed);
        Ok(quota.suppressed.saturating_sub(before))
    }

    /// So many are lost in all. Returns of how many that was not said.
    fn lose(&mut self, lost: u64) -> u64 {
        let before = self.lost;
        self.lost = before.max(lost);
        self.lost - before
    }

    /// Takes every event that is there; does not wait.
    pub fn drain(&mut self) -> Vec<Event> {
        self.take_events();
        mem::take(&mut self.backlog)
    }

    fn take_events(&mut self) {
        let events = self.log.drain();
        self.received += events.len() as u64;
        self.backlog.extend(events);
    }

    /// Leaves all as a process that is killed does.
    #[cfg(test)]
    pub(crate) fn die(&mut self) {
        self.seat = None;
    }
}

/// Readable when there are events, for `poll` or an async runtime.
impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if self.seat.is_some() {
            // Where that fails it is as if this process had been killed.
            _ = self.common.leave(self.slot, self.reporter);
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// What all who listen share.
struct Common {
    pins: Pins,
    lock_dir: PathBuf,
    tail_calls: MapData,
    settings: Slot<Settings>,
}

impl Common {
    fn open(pins: Pins, lock_dir: &Path) -> Result<Self, MonitorError> {
        let lock_dir = lock_dir.to_owned();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&lock_dir);
        made.map_err(|source| MonitorError::Lock { path: lock_dir.clone(), source })?;
        let tail_calls = maps::open_data(map_name::TAIL_CALLS, &pins)?;
        let settings = maps::open_settings(&pins)?;
        Ok(Self { pins, lock_dir, tail_calls, settings })
    }

    /// Puts the reporter into a slot that is nobody's.
    fn take_slot(&self, reporter: &OwnedFd) -> Result<(u32, File), MonitorError> {
        let _turn = self.turn()?;
        for slot in tail_call::REPORTERS {
            if let Some(seat) = self.seat(slot)? {
                self.set_slot(slot, Some(reporter))?;
                return Ok((slot, seat));
            }
        }
        Err(MonitorError::Full)
    }

    fn listen_until(&self, until_ns: u64) -> Result<(), MonitorError> {
        if !maps::is_pinned(map_name::TAIL_CALLS, &self.pins, &self.tail_calls)? {
            return Err(MonitorError::Unloaded);
        }
        Ok(self.settings.set(Settings { listened_until_ns: until_ns })?)
    }

    /// Empties the slots that are nobody's. Whether somebody but `own` is left.
    fn sweep(&self, own: Option<u32>) -> Result<bool, MonitorError> {
        let _turn = self.turn()?;
        self.sweep_in_turn(own)
    }

    fn sweep_in_turn(&self, own: Option<u32>) -> Result<bool, MonitorError> {
        let mut is_anybody_left = false;
        for slot in tail_call::REPORTERS.filter(|slot| Some(*slot) != own) {
            match self.seat(slot)? {
                Some(_seat) => self.set_slot(slot, None)?,
                None => is_anybody_left = true,
            }
        }
        Ok(is_anybody_left)
    }

    fn leave(&self, slot: u32, reporter: ProgramId) -> Result<(), MonitorError> {
        let _turn = self.turn()?;
        if matches!(self.is_in_slot(slot, reporter), Ok(false)) {
            return Ok(());
        }
        self.set_slot(slot, None)?;
        if !self.sweep_in_turn(Some(slot))? {
            self.settings.set(Settings::default())?;
        }
        Ok(())
    }

    /// Not so where one with other lock files has put its own there, or has swept.
    fn is_in_slot(&self, slot: u32, reporter: ProgramId) -> Result<bool, MonitorError> {
        let path = self.pins.map(map_name::TAIL_CALLS);
        let slots = RawTable::open(map_name::TAIL_CALLS, &path)?.ok_or(MonitorError::Unloaded)?;
        let id = slots.get(&slot.to_ne_bytes())?;
        Ok(id.is_some_and(|id| id == reporter.0.to_ne_bytes()))
    }

    fn set_slot(&self, slot: u32, reporter: Option<&OwnedFd>) -> Result<(), MonitorError> {
        let outcome = match reporter {
            Some(reporter) => bpf::put_program(&self.tail_calls, slot, reporter.as_fd()),
            None => bpf::remove(&self.tail_calls, slot).map(drop),
        };
        Ok(outcome.map_err(|source| maps::access_error("write", map_name::TAIL_CALLS, source))?)
    }

    /// Until this is dropped, nobody else starts, ends or sweeps.
    fn turn(&self) -> Result<File, MonitorError> {
        let (path, file) = self.lock_file("monitors")?;
        file.lock().map_err(|source| MonitorError::Lock { path, source })?;
        Ok(file)
    }

    /// The lock of a slot, if nobody has it.
    fn seat(&self, slot: u32) -> Result<Option<File>, MonitorError> {
        let (path, file) = self.lock_file(&format!("monitor-{slot}"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(MonitorError::Lock { path, source }),
        }
    }

    fn lock_file(&self, name: &str) -> Result<(PathBuf, File), MonitorError> {
        let path = self.lock_dir.join(name);
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        match opened {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(MonitorError::Lock { path, source }),
        }
    }
}

impl Selection {
    fn write(&self, own: &mut ReporterMaps) -> Result<(), MapError> {
        let is_of_pods = !self.pod_links.is_empty() || !self.pod_addresses.is_empty();
        let mut bits = 0;
        if is_of_pods {
            bits |= interest::POD;
        }
        if !self.addresses.is_empty() {
            bits |= interest::ADDRESS;
        }
        for ifindex in &self.pod_links {
            // An interface has the address that was asked for if the packet has.
            own.put_link(*ifindex, interest::POD)?;
        }
        for (address, length, bits) in self.prefixes() {
            own.put_host(address, length, bits)?;
        }
        own.set_interest(Interest {
            drops: self.drops.iter().fold(0, |bits, counter| bits | 1 << *counter as u32),
            flows: self.flows.into(),
            bits,
            rate: self.rate,
        })
    }

    /// Prefixes among IPv6 addresses, each with the bits of all that hold it: a look-up finds the longest
    /// alone.
    fn prefixes(&self) -> Vec<(u128, u32, u32)> {
        let of_pods = self.pod_addresses.iter().map(|address| (address_bits(*address), 128));
        let of_pods = of_pods.map(|(address, length)| (address, length, interest::POD));
        let wanted = self.addresses.iter().map(|network| {
            let length = u32::from(network.prefix());
            let length = if network.is_ipv4() { 96 + length } else { length };
            (address_bits(network.network()), length, interest::ADDRESS)
        });
        let asked: Vec<_> = of_pods.chain(wanted).collect();
        let holds = |(outer, length, _): &(u128, u32, u32), inner: u128, inner_length: u32| {
            *length <= inner_length && (*length == 0 || (outer ^ inner) >> (128 - length) == 0)
        };
        let all_bits = |(address, length, _): &(u128, u32, u32)| {
            let holding = asked.iter().filter(|outer| holds(outer, *address, *length));
            (*address, *length, holding.fold(0, |bits, (_, _, more)| bits | more))
        };
        asked.iter().map(all_bits).collect()
    }
}

fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The time of `bpf_ktime_get_ns`.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_inside_of_another_has_the_bits_of_both() {
        let selection = Selection {
            drops: Vec::new(),
            flows: true,
            pod_links: Vec::new(),
            pod_addresses: vec!["10.244.0.5".parse().expect("address")],
            addresses: ["10.244.0.0/16", "fd00::/8", "10.244.0.5/32"]
                .map(|network| network.parse().expect("network"))
                .to_vec(),
            rate: 1,
        };
        let both = interest::POD | interest::ADDRESS;

        let lengths: Vec<_> =
            selection.prefixes().into_iter().map(|(_, length, bits)| (length, bits)).collect();

        let address = interest::ADDRESS;
        assert_eq!(lengths, [(128, both), (112, address), (8, address), (128, both)]);
    }
}
