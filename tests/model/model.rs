//! What there must be after every step, and what every verb must answer.
//!
//! The model knows nothing of margay's code but its contract: what a verb makes and takes away,
//! and in which order an ADD goes through its phases. Where a verb is stopped between phases,
//! the contract does not say how far it came; the model then takes over what there is, and goes
//! on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use margay_datastore::EndpointState;
use serde_json::Value;

use crate::plan::{ADD_PHASES, Network, SANDBOXES, Slot, Step, Stop};

/// What exists of an attachment, in every place that can hold something of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Index of the host veth.
    pub(crate) link: Option<u32>,
    pub(crate) endpoint: Option<EndpointState>,
    /// Whether there is a handle, and the addresses in its blocks.
    pub(crate) handle: bool,
    pub(crate) held: BTreeSet<IpAddr>,
    /// Addresses whose map entries point to a host veth of it.
    pub(crate) entries: BTreeSet<IpAddr>,
    /// A lock file that a killed process left.
    pub(crate) lock: bool,
    /// Pins of TCX links.
    pub(crate) pins: bool,
}

impl Facts {
    /// Whether everything is there that an ADD makes.
    pub(crate) fn is_sound(&self) -> bool {
        let is_ready = self.endpoint == Some(EndpointState::Ready) && self.link.is_some();
        is_ready && self.handle && self.held.len() == 2 && self.entries == self.held
    }

    /// The address of a family.
    pub(crate) fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.held.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }

    /// Whether there is anything that a GC finds it by.
    pub(crate) fn is_found_by_gc(&self) -> bool {
        self.link.is_some() || self.endpoint.is_some() || self.handle
    }
}

/// How a verb ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    Error(u64),
    Killed,
    /// An exit code and nothing else: the answer could not be written.
    Silent,
}

/// What a step must have led to, besides what the model knows by then.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// `None` where there is nothing to answer.
    pub(crate) answer: Option<Answer>,
    /// The attachment that an ADD has made.
    added: Option<Slot>,
    /// Attachments of which any part may exist.
    unknown: BTreeSet<Slot>,
    /// Attachments of which any map entry may be gone.
    entries_unknown: BTreeSet<Slot>,
    /// Whether any lock file may be gone.
    locks_unknown: bool,
    /// Whether it is unknown if the first verb of the boot has done its part.
    boot_unknown: bool,
}

/// The node as it must be.
pub(crate) struct Model {
    pub(crate) facts: BTreeMap<Slot, Facts>,
    /// Results of the ADDs that the runtime knows of and has not taken back.
    pub(crate) results: BTreeMap<Slot, Value>,
    pub(crate) sandboxes: [bool; SANDBOXES],
    /// Whether what earlier boots left is still to be taken back.
    pub(crate) is_reclaim_due: bool,
    capacity: BTreeMap<(Network, bool), usize>,
}

impl Model {
    pub(crate) fn new(capacity: BTreeMap<(Network, bool), usize>) -> Self {
        Self {
            facts: Slot::all().map(|slot| (slot, Facts::default())).collect(),
            results: BTreeMap::new(),
            sandboxes: [false; SANDBOXES],
            is_reclaim_due: true,
            capacity,
        }
    }

    pub(crate) fn of(&self, slot: Slot) -> &Facts {
        &self.facts[&slot]
    }

    /// Whether an address of this family is left to be given to `slot`.
    fn has_free(&self, slot: Option<Slot>, network: Network, ipv4: bool) -> bool {
        let others = self
            .facts
            .iter()
            .filter(|(other, _)| other.network() == network && Some(**other) != slot);
        let held = others.flat_map(|(_, facts)| &facts.held).filter(|ip| ip.is_ipv4() == ipv4);
        held.count() < self.capacity[&(network, ipv4)]
    }

    /// The attachments of a network that the runtime has.
    pub(crate) fn valid(&self, network: Network) -> impl Iterator<Item = Slot> {
        self.results.keys().copied().filter(move |slot| slot.network() == network)
    }

    /// Pods that can be expected to answer a ping: those with one interface, their first.
    pub(crate) fn pods(&self) -> Vec<Slot> {
        let has_link = |slot: &Slot| self.of(*slot).link.is_some();
        let is_pod = |slot: &Slot| {
            let only = Slot::of(slot.sandbox).filter(has_link).count() == 1;
            only && slot.ifname() == "eth0" && self.of(*slot).is_sound()
        };
        Slot::all().filter(is_pod).collect()
    }
}

/// What steps do.
impl Model {
    /// Does a step. Where it is stopped at a point that the model does not know, `answer` and
    /// `was_refused` say whether it came that far.
    pub(crate) fn advance(
        &mut self,
        step: Step,
        answer: Option<&Answer>,
        was_refused: bool,
    ) -> Settlement {
        let was_killed = answer == Some(&Answer::Killed);
        let step = match answer {
            // It had done its work, as one that is killed just before it answers.
            Some(Answer::Silent) => step.stopped(Stop::KillBefore(0)),
            _ => step,
        };
        let mut settlement = self.apply(step, was_killed || was_refused);
        if was_refused && !was_killed {
            settlement.answer = answer.cloned();
        }
        if was_refused && answer == Some(&Answer::Success) {
            self.succeed(step, &mut settlement);
        }
        settlement
    }

    /// A change was refused and the verb succeeded all the same: it must have done its work.
    fn succeed(&mut self, step: Step, settlement: &mut Settlement) {
        let done: Vec<Slot> = match step {
            Step::Add(slot, _) => {
                settlement.added = Some(slot);
                vec![slot]
            }
            Step::Del(slot, _) => {
                self.clear(slot);
                self.results.remove(&slot);
                vec![slot]
            }
            Step::Gc(network, _) => {
                let valid: BTreeSet<Slot> = self.valid(network).collect();
                let is_garbage = |slot: &Slot| slot.network() == network && !valid.contains(slot);
                let garbage: Vec<Slot> = Slot::all().filter(is_garbage).collect();
                for slot in &garbage {
                    if self.of(*slot).is_found_by_gc() {
                        self.clear(*slot);
                    }
                }
                let orphans = std::mem::take(&mut settlement.entries_unknown);
                orphans.into_iter().for_each(|slot| self.edit(slot).entries.clear());
                garbage
            }
            _ => Vec::new(),
        };
        settlement.unknown.retain(|slot| !done.contains(slot));
    }

    fn apply(&mut self, step: Step, was_reached: bool) -> Settlement {
        let answered = |answer| Settlement { answer: Some(answer), ..Settlement::default() };
        match step {
            Step::Add(slot, stop) => self.add(slot, effective(stop, was_reached)),
            Step::LateAdd(slot) => self.add(slot, Stop::Never),
            Step::Del(slot, stop) => self.del(slot, effective(stop, was_reached)),
            Step::Gc(network, stop) => self.gc(network, effective(stop, was_reached)),
            Step::Check(slot) => answered(self.check(slot)),
            Step::Status(network) => answered(self.status(network)),
            Step::EndSandbox { sandbox, forgotten } => {
                self.end_sandbox(sandbox);
                if forgotten {
                    self.results.retain(|slot, _| slot.sandbox != sandbox);
                }
                Settlement::default()
            }
            Step::DeleteHostVeth(slot) => {
                self.edit(slot).link = None;
                Settlement::default()
            }
            Step::DeleteMapEntry { slot, ipv4 } => {
                self.edit(slot).entries.retain(|address| address.is_ipv4() != ipv4);
                Settlement::default()
            }
            Step::Reboot { remade } => {
                self.reboot(remade);
                Settlement::default()
            }
            Step::Ping { .. } => Settlement::default(),
        }
    }

    fn add(&mut self, slot: Slot, stop: Stop) -> Settlement {
        let mut settlement = Settlement::default();
        if !self.sandboxes[slot.sandbox] {
            settlement.answer = Some(Answer::Error(4));
            return settlement;
        }
        if is_anywhere(stop) {
            let is_new = *self.of(slot) == Facts::default() && !self.is_reclaim_due;
            let is_refused = matches!(stop, Stop::Refuse(..));
            if is_new && is_refused && self.obstacle(slot).is_none() {
                // Nothing else goes wrong: it takes back what it has done.
                return settlement;
            }
            return self.stopped_anywhere(BTreeSet::from([slot]));
        }
        if let Some(answer) = stopped_at(stop, "open") {
            settlement.answer = Some(answer);
            return settlement;
        }
        self.open();
        // One that lacks a part is the remains of an ADD or a DEL.
        let is_alive = self.of(slot).is_sound();
        let stop_phase = phase_of(stop);
        let end = if stop_phase == Some("look_up") {
            stopped_at(stop, "look_up")
        } else if is_alive {
            Some(Answer::Error(100))
        } else {
            None
        };
        if let Some(answer) = end {
            self.edit(slot).lock = answer == Answer::Killed;
            settlement.answer = Some(answer);
            return settlement;
        }
        self.clear(slot);
        let obstacle = self.obstacle(slot);
        let position = |phase| ADD_PHASES.iter().position(|other| *other == phase);
        let is_stopped = stop_phase.is_some_and(|stop| {
            obstacle.is_none_or(|(phase, _)| position(stop) <= position(phase))
        });
        settlement.answer = Some(match (is_stopped, stop, obstacle) {
            (true, Stop::Kill(_), _) => {
                settlement.unknown.insert(slot);
                Answer::Killed
            }
            (true, _, _) => Answer::Error(199),
            (false, _, Some((_, code))) => Answer::Error(code),
            (false, _, None) => {
                settlement.added = Some(slot);
                Answer::Success
            }
        });
        settlement
    }

    /// What an ADD that finds nothing of its own fails over: the phase and the code.
    fn obstacle(&self, slot: Slot) -> Option<(&'static str, u64)> {
        let network = slot.network();
        if ![true, false].into_iter().all(|ipv4| self.has_free(Some(slot), network, ipv4)) {
            return Some(("addresses", 101));
        }
        let has_its_name = |other: Slot| {
            other != slot && other.ifname() == slot.ifname() && self.of(other).link.is_some()
        };
        Slot::of(slot.sandbox).any(has_its_name).then_some(("veth", 103))
    }

    fn del(&mut self, slot: Slot, stop: Stop) -> Settlement {
        if is_anywhere(stop) {
            return self.stopped_anywhere(BTreeSet::from([slot]));
        }
        let phase = phase_of(stop);
        if phase != Some("open") {
            self.open();
            if phase != Some("teardown") {
                self.clear(slot);
            }
            self.edit(slot).lock = matches!(stop, Stop::Kill(_));
        }
        let answer = phase.and_then(|phase| stopped_at(stop, phase)).unwrap_or(Answer::Success);
        if answer == Answer::Success {
            self.results.remove(&slot);
        }
        Settlement { answer: Some(answer), ..Settlement::default() }
    }

    fn gc(&mut self, network: Network, stop: Stop) -> Settlement {
        let valid: BTreeSet<Slot> = self.valid(network).collect();
        let garbage: BTreeSet<Slot> =
            Slot::all().filter(|slot| slot.network() == network && !valid.contains(slot)).collect();
        let orphans: BTreeSet<Slot> =
            Slot::all().filter(|slot| self.of(*slot).link.is_none()).collect();
        if is_anywhere(stop) {
            let settlement = self.stopped_anywhere(garbage);
            return Settlement { entries_unknown: orphans, locks_unknown: true, ..settlement };
        }
        let phase = phase_of(stop);
        if phase != Some("gather") {
            self.open();
        }
        if !matches!(phase, Some("gather" | "teardown")) {
            for slot in garbage {
                if self.of(slot).is_found_by_gc() {
                    self.clear(slot);
                }
            }
            // Whoever had them was killed.
            self.facts.values_mut().for_each(|facts| facts.lock = false);
        }
        if !matches!(phase, Some("gather" | "teardown" | "map")) {
            orphans.into_iter().for_each(|slot| self.edit(slot).entries.clear());
        }
        let answer = phase.and_then(|phase| stopped_at(stop, phase)).unwrap_or(Answer::Success);
        Settlement { answer: Some(answer), ..Settlement::default() }
    }

    fn check(&mut self, slot: Slot) -> Answer {
        if !self.sandboxes[slot.sandbox] {
            return Answer::Error(4);
        }
        self.open();
        self.edit(slot).lock = false;
        let facts = self.of(slot);
        // The runtime may know an earlier ADD than the one that made what there is.
        let is_known = self.results.get(&slot).is_none_or(|it| addresses_of(it) == facts.held);
        match facts.endpoint {
            Some(EndpointState::Ready) if facts.is_sound() && is_known => Answer::Success,
            Some(EndpointState::Ready) => Answer::Error(104),
            _ => Answer::Error(3),
        }
    }

    fn status(&mut self, network: Network) -> Answer {
        self.open();
        let is_free = [true, false].into_iter().all(|ipv4| self.has_free(None, network, ipv4));
        if is_free { Answer::Success } else { Answer::Error(50) }
    }

    fn end_sandbox(&mut self, sandbox: usize) {
        self.sandboxes[sandbox] = false;
        Slot::of(sandbox).for_each(|slot| self.edit(slot).link = None);
    }

    fn reboot(&mut self, remade: u32) {
        for sandbox in 0..SANDBOXES {
            self.sandboxes[sandbox] &= remade & (1 << sandbox) != 0;
        }
        for facts in self.facts.values_mut() {
            (facts.link, facts.lock, facts.pins) = (None, false, false);
            facts.entries.clear();
        }
        self.is_reclaim_due = true;
    }

    /// A verb that was stopped at an unknown point had begun to change these.
    fn stopped_anywhere(&mut self, mut unknown: BTreeSet<Slot>) -> Settlement {
        if self.is_reclaim_due {
            unknown.extend(self.reclaimable());
        }
        let answer = Some(Answer::Killed);
        Settlement { answer, unknown, boot_unknown: true, ..Settlement::default() }
    }

    /// A verb opens the datastore.
    fn open(&mut self) {
        if !std::mem::take(&mut self.is_reclaim_due) {
            return;
        }
        for slot in self.reclaimable() {
            let facts = self.edit(slot);
            (facts.handle, facts.endpoint) = (false, None);
            facts.held.clear();
        }
    }

    /// What the first verb of a boot takes back: what earlier boots left without a namespace.
    fn reclaimable(&self) -> Vec<Slot> {
        let is_left = |slot: &Slot| self.of(*slot).handle && !self.sandboxes[slot.sandbox];
        Slot::all().filter(is_left).collect()
    }

    fn clear(&mut self, slot: Slot) {
        *self.edit(slot) = Facts::default();
    }

    fn edit(&mut self, slot: Slot) -> &mut Facts {
        self.facts.get_mut(&slot).expect("every slot has facts")
    }
}

/// What a step led to.
impl Model {
    /// Takes over what no contract settles, and says what is not as it must be.
    pub(crate) fn settle(
        &mut self,
        settlement: &Settlement,
        result: Value,
        found: &BTreeMap<Slot, Facts>,
        is_boot_recorded: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for slot in &settlement.unknown {
            *self.edit(*slot) = found[slot].clone();
        }
        for slot in &settlement.entries_unknown {
            if found[slot].entries.is_subset(&self.of(*slot).entries) {
                self.edit(*slot).entries = found[slot].entries.clone();
            }
        }
        if settlement.locks_unknown {
            self.facts.iter_mut().for_each(|(slot, facts)| facts.lock &= found[slot].lock);
        }
        if settlement.boot_unknown {
            self.is_reclaim_due = !is_boot_recorded;
        }
        if let Some(slot) = settlement.added {
            wrong.extend(self.take_added(slot, result, &found[&slot]));
        }
        for (slot, expected) in &self.facts {
            if found[slot] != *expected {
                let attachment = slot.attachment();
                wrong.push(format!("{attachment} is {:?}, not {expected:?}", found[slot]));
            }
        }
        if self.is_reclaim_due == is_boot_recorded {
            wrong.push(format!("the boot is recorded: {is_boot_recorded}"));
        }
        wrong
    }

    fn take_added(&mut self, slot: Slot, result: Value, found: &Facts) -> Option<String> {
        let ips = addresses_of(&result);
        self.results.insert(slot, result);
        *self.edit(slot) = Facts {
            link: found.link,
            endpoint: Some(EndpointState::Ready),
            handle: true,
            held: ips.clone(),
            entries: ips,
            lock: false,
            pins: slot.network() == Network::Green,
        };
        let facts = self.of(slot);
        let families = (facts.address(true).is_some(), facts.address(false).is_some());
        let is_complete = facts.is_sound() && families == (true, true);
        (!is_complete).then(|| format!("{} was added as {found:?}", slot.attachment()))
    }
}

fn addresses_of(result: &Value) -> BTreeSet<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

/// A verb that had ended before it was to be stopped was not stopped.
fn effective(stop: Stop, was_reached: bool) -> Stop {
    if is_anywhere(stop) && !was_reached { Stop::Never } else { stop }
}

/// Whether the model does not know what was done before the verb was stopped.
fn is_anywhere(stop: Stop) -> bool {
    matches!(stop, Stop::KillBefore(_) | Stop::KillAfter(_) | Stop::Refuse(..))
}

fn phase_of(stop: Stop) -> Option<&'static str> {
    match stop {
        Stop::Fail(phase) | Stop::Kill(phase) => Some(phase),
        _ => None,
    }
}

fn stopped_at(stop: Stop, at: &str) -> Option<Answer> {
    match stop {
        Stop::Fail(phase) if phase == at => Some(Answer::Error(199)),
        Stop::Kill(phase) if phase == at => Some(Answer::Killed),
        _ => None,
    }
}
