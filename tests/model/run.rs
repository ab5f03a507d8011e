//! Runs sequences, each on a node of its own, and makes those that fail small.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use margay_tests::Node;

use crate::model::{Answer, Model};
use crate::plan::{Network, Plan, Slot, Step, Stop};
use crate::world::{Outcome, World};

/// How long a failing sequence is made smaller before it is shown.
const SHRINKING: Duration = Duration::from_secs(90);
/// How often a sequence with a kill at an uncertain point is run before it counts as one that goes
/// well.
const TRIES: usize = 3;

/// What was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sequences: u64,
    pub(crate) steps: u64,
    /// By verb and answer, by phase of a kill, by event.
    counts: BTreeMap<String, u64>,
}

/// A sequence that did not go as the model says.
#[derive(Debug)]
pub(crate) struct Failure {
    seed: u64,
    reason: Wrong,
    shrunk: Plan,
    shrunk_reason: Wrong,
}

/// What is not as the model says.
#[derive(Clone, Debug)]
struct Wrong {
    /// How many steps of the sequence it took.
    steps: usize,
    reason: String,
}

/// Runs the sequence of a seed.
pub(crate) fn run(seed: u64) -> Result<Totals, Box<Failure>> {
    let plan = Plan::of(seed);
    run_plan(&plan).map_err(|reason| {
        let (shrunk, shrunk_reason) = shrink(plan, reason.clone());
        Box::new(Failure { seed, reason, shrunk, shrunk_reason })
    })
}

/// Runs a sequence on a thread of its own, which becomes a node and ceases to be one with it.
fn run_plan(plan: &Plan) -> Result<Totals, Wrong> {
    thread::scope(|scope| {
        let node = thread::Builder::new().name("node".to_owned());
        let node = node.spawn_scoped(scope, || on_a_node(plan)).expect("start a thread");
        node.join().unwrap_or_else(|panic| {
            let reason = format!("a panic: {}", text_of(&*panic));
            Err(Wrong { steps: plan.steps.len(), reason })
        })
    })
}

fn on_a_node(plan: &Plan) -> Result<Totals, Wrong> {
    let node = Node::new().expect("a node");
    let mut model = Model::new(World::capacity(plan.is_tight));
    let mut world = World::new(&node, plan.is_tight);
    let mut totals = Totals { sequences: 1, ..Totals::default() };
    let last = last_steps(plan);
    for (number, step) in plan.steps.iter().chain(&last).enumerate() {
        if number >= plan.steps.len() && matches!(step, Step::Gc(..)) {
            model.results.clear();
        }
        do_step(*step, &mut model, &mut world, &mut totals).map_err(|reason| {
            let steps = (number + 1).min(plan.steps.len());
            Wrong { steps, reason: format!("step {}, {step}: {reason}", number + 1) }
        })?;
    }
    let left = world.leftovers();
    if left.is_empty() {
        return Ok(totals);
    }
    let reason = format!("left after everything: {left:?}");
    Err(Wrong { steps: plan.steps.len(), reason })
}

/// A look at everything; then GC of everything, then DEL of everything: after each of them, what it
/// promises to take away is away.
fn last_steps(plan: &Plan) -> Vec<Step> {
    let attachments: BTreeSet<Slot> = plan.steps.iter().filter_map(Step::slot).collect();
    let check = attachments.iter().map(|slot| Step::Check(*slot));
    let collect = Network::ALL.into_iter().map(|network| Step::Gc(network, Stop::Never));
    let delete = attachments.iter().map(|slot| Step::Del(*slot, Stop::Never));
    check.chain(collect).chain(delete).collect()
}

fn do_step(
    step: Step,
    model: &mut Model,
    world: &mut World<'_>,
    totals: &mut Totals,
) -> Result<(), String> {
    let sandbox = match step {
        Step::Add(slot, _) => Some(slot.sandbox),
        _ => None,
    };
    let Outcome { answer, result, log, was_refused, complaint } = world.perform(step, model);
    totals.count(step, answer.as_ref(), was_refused);
    if let Some(sandbox) = sandbox {
        model.sandboxes[sandbox] = true;
    }
    let settlement = model.advance(step, answer.as_ref(), was_refused);
    let sight = world.look();
    let mut wrong: Vec<String> = complaint.into_iter().chain(sight.complaints).collect();
    if answer != settlement.answer {
        wrong.push(format!("the answer is {answer:?}, not {:?}", settlement.answer));
    }
    wrong.extend(model.settle(&settlement, result, &sight.facts, sight.is_boot_recorded));
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}\n{log}", wrong.join("\n"))) }
}

/// Takes out ever smaller parts for as long as the rest still fails.
fn shrink(plan: Plan, reason: Wrong) -> (Plan, Wrong) {
    let deadline = Instant::now() + SHRINKING;
    let (mut plan, mut reason) = (plan, reason);
    plan.steps.truncate(reason.steps);
    let mut size = plan.steps.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < plan.steps.len() && Instant::now() < deadline {
            let mut smaller = plan.clone();
            smaller.steps.drain(start..(start + size).min(plan.steps.len()));
            match try_plan(&smaller) {
                Err(found) => (plan, reason) = (smaller, found),
                Ok(()) => start += size,
            }
        }
        size /= 2;
    }
    (plan, reason)
}

fn try_plan(plan: &Plan) -> Result<(), Wrong> {
    let tries = if plan.steps.iter().any(|step| matches!(step.stop(), Stop::KillAfter(_))) {
        TRIES
    } else {
        1
    };
    (0..tries).try_for_each(|_| run_plan(plan).map(drop))
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.steps += other.steps;
        for (name, count) in &other.counts {
            *self.counts.entry(name.clone()).or_default() += count;
        }
    }

    fn count(&mut self, step: Step, answer: Option<&Answer>, was_refused: bool) {
        self.steps += 1;
        let name = match step {
            Step::Add(..) => "ADD",
            Step::LateAdd(_) => "late ADD",
            Step::Del(..) => "DEL",
            Step::Gc(..) => "GC",
            Step::Check(_) => "CHECK",
            Step::Status(_) => "STATUS",
            Step::EndSandbox { .. } => "sandbox ended",
            Step::DeleteHostVeth(_) => "host veth deleted",
            Step::DeleteMapEntry { .. } => "map entry deleted",
            Step::Reboot { .. } => "reboot",
            Step::Ping { .. } => "ping",
        };
        let ending = match (answer, step.stop()) {
            (None, _) => String::new(),
            (Some(Answer::Success), _) if was_refused => ", success but for a change".to_owned(),
            (Some(Answer::Error(_)), _) if was_refused => ", a change refused".to_owned(),
            (Some(Answer::Success), _) => ", success".to_owned(),
            (Some(Answer::Error(code)), _) => format!(", code {code}"),
            (Some(Answer::Silent), _) => ", the answer refused".to_owned(),
            (Some(Answer::Killed), Stop::Kill(phase)) => format!(", killed at {phase}"),
            (Some(Answer::Killed), Stop::KillAfter(_)) => ", killed at some time".to_owned(),
            (Some(Answer::Killed), _) => ", killed before a change".to_owned(),
        };
        *self.counts.entry(format!("{name}{ending}")).or_default() += 1;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sequences, {} steps", self.sequences, self.steps)?;
        self.counts.iter().try_for_each(|(name, count)| writeln!(f, "{count:8}  {name}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, reason, shrunk, shrunk_reason } = self;
        writeln!(f, "MARGAY_MODEL_SEED={seed} is not as the model says: {}", reason.reason)?;
        writeln!(f, "made smaller, with {shrunk}it fails by {}", shrunk_reason.reason)
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "of an unknown kind".to_owned())
}
