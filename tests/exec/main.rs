//! The real binaries, executed with an environment and a standard input: what they answer, and what
//! they leave behind when they fail.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bandwidth;
mod chain;
mod collection;
mod concurrency;
mod damage;
mod delegation;
mod economy;
mod environment;
mod etcd;
mod hostile;
mod install;
mod kill;
mod measurements;
mod migration;
mod reboot;
mod refusals;
mod residue;
mod sabotage;
mod scripted;
