//! Random sequences of verbs, kills, sabotage and reboots on a real kernel, against a small model
//! that says what each verb must answer and what must exist after it.
//!
//! Each sequence follows from a seed and runs on a node of its own. `MARGAY_MODEL_SEED=N` runs
//! the one of a seed; `cargo xtask soak` runs new ones for a long time. What is killed after a
//! time, and not at a phase, is not killed at the same point again: such a sequence may need
//! several runs to fail again.

mod model;
mod plan;
mod run;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use margay_tests::requirements;

use run::Totals;

/// The sequence of this seed, alone; or the first one of a soak.
const SEED: &str = "MARGAY_MODEL_SEED";
/// How long a soak lasts.
const MINUTES: &str = "MARGAY_MODEL_MINUTES";
/// Sequences whose seeds never change.
const FIXED: u64 = 12;
/// Sequences whose seeds are new in every run.
const NEW: u64 = 4;
/// How often a soak says how far it is.
const REPORT: Duration = Duration::from_secs(30);

#[test]
fn sequences_of_known_seeds_go_as_the_model_says() {
    if !requirements::root() {
        return;
    }
    let seeds = variable(SEED).map_or(0..FIXED, |seed| seed..seed + 1);
    run_all(seeds, None);
}

#[test]
fn sequences_of_new_seeds_go_as_the_model_says() {
    if !requirements::root() || variable(SEED).is_some() {
        return;
    }
    let seed = new_seed();
    println!("seeds from {seed}");
    run_all(seed..seed + NEW, None);
}

#[test]
#[ignore = "as long as it is told to: `cargo xtask soak`"]
fn soak() {
    if !requirements::root() {
        return;
    }
    let minutes = variable(MINUTES).unwrap_or(1);
    let seed = variable(SEED).unwrap_or_else(new_seed);
    println!("seeds from {seed}, for {minutes} minutes");
    run_all(seed..u64::MAX, Some(Instant::now() + Duration::from_secs(60 * minutes)));
}

/// Runs the sequences of the seeds, as many at a time as there are processors, until there is none
/// left or the time is over.
fn run_all(seeds: std::ops::Range<u64>, end: Option<Instant>) {
    let next = AtomicU64::new(seeds.start);
    let is_over = AtomicBool::new(false);
    let totals = Mutex::new((Totals::default(), Instant::now()));
    let failures = Mutex::new(Vec::new());
    let work = || {
        while !is_over.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match run::run(seed) {
                Ok(done) => {
                    let mut totals = totals.lock().expect("no panic while it is locked");
                    totals.0.add(&done);
                    if end.is_some() && totals.1.elapsed() > REPORT {
                        totals.1 = Instant::now();
                        println!("{} sequences, {} steps", totals.0.sequences, totals.0.steps);
                    }
                }
                Err(failure) => {
                    println!("{failure}");
                    failures.lock().expect("no panic while it is locked").push(failure);
                    // A soak goes on to find more.
                    is_over.store(end.is_none(), Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no panic while it is locked");
    println!("{}{} failures", totals.into_inner().expect("no panic").0, failures.len());
    assert!(failures.is_empty(), "{}", failures[0]);
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    // Room for a soak's seeds between those of two runs, and few enough digits to be typed.
    now.as_secs() % 100_000_000 * 1_000
}
