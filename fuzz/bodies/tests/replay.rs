//! Hands every seed of `fuzz/corpus`, and a few thousand mutations of them, to the fuzz targets.
//!
//! The mutations follow from the seeds alone, so a failure here fails everywhere; the input is
//! shown, to be kept as a seed. The search for new inputs is `cargo xtask fuzz`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{fs, process};

use margay_fuzz_bodies::{TARGETS, Target};

/// Mutations of the seeds of one target.
const MUTATIONS: usize = 3_000;
/// Longest input that a mutation makes, in bytes.
const LONGEST: usize = 4_096;

#[test]
fn agent_conf_keeps_its_promises() {
    replay("agent_conf");
}

#[test]
fn cni_args_keep_their_promises() {
    replay("cni_args");
}

#[test]
fn from_pod_keeps_its_promises() {
    replay("from_pod");
}

#[test]
fn netconf_keeps_its_promises() {
    replay("netconf");
}

#[test]
fn prev_result_keeps_its_promises() {
    replay("prev_result");
}

#[test]
fn records_keep_their_promises() {
    replay("records");
}

#[test]
fn node_keeps_its_promises() {
    replay("node");
}

#[test]
fn to_pod_keeps_its_promises() {
    replay("to_pod");
}

#[test]
fn every_target_has_a_fuzzer_and_seeds() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("fuzz/Cargo.toml");
    for Target { name, .. } in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} has no fuzzer");
        let seeds = seeds(name);
        assert!((1..=48).contains(&seeds.len()), "{name} has {} seeds", seeds.len());
    }
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = seeds(name);
    for (path, seed) in &seeds {
        run(target, seed, &path.display().to_string());
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for number in 0..MUTATIONS {
        let input = mutate(&seeds, &mut dice);
        run(target, &input, &format!("mutation {number}"));
    }
}

fn run(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let path = std::env::temp_dir().join(format!("{}-{}", target.name, process::id()));
        fs::write(&path, input).expect("keep the input");
        panic!("{}: {what}: the input is in {}", target.name, path.display());
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The seeds of a target, in the order of their names.
fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder().join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).expect("a seed"))).collect()
}

/// A seed with up to eight changes: bits, bytes, runs cut out, doubled or taken from another seed.
fn mutate(seeds: &[(PathBuf, Vec<u8>)], dice: &mut Dice) -> Vec<u8> {
    const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\"\\{}[],:/.0129-%;= \n\r\x1b";
    let mut input = dice.pick(seeds).1.clone();
    for _ in 0..=dice.below(8) {
        let (start, end) = dice.range(input.len());
        match dice.below(7) {
            0 if !input.is_empty() => input[start.min(end.max(1) - 1)] ^= 1 << dice.below(8),
            1 if start < end => input[start] = *dice.pick(BYTES),
            2 => input.insert(start, *dice.pick(BYTES)),
            3 => drop(input.drain(start..end)),
            4 => drop(input.splice(start..start, input[start..end].to_vec())),
            5 => input.truncate(end),
            _ => {
                let other = &dice.pick(seeds).1;
                let (from, to) = dice.range(other.len());
                input.splice(start..end, other[from..to].iter().copied());
            }
        }
        input.truncate(LONGEST);
    }
    input
}

/// xorshift64*: the same throws everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let thrown = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(thrown).expect("32 bits") % bound
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A run inside of `len` things, short more often than not.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let start = self.below(len + 1);
        let longest = if self.below(4) == 0 { len } else { 16 };
        (start, (start + self.below(longest.max(1) + 1)).min(len))
    }
}
