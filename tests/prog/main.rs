//! The kernel half on a real kernel, one packet at a time (`BPF_PROG_TEST_RUN`): what it does with
//! the packet, what it makes of it, what it counts and what it remembers.

mod answers;
mod bench;
mod flows;
mod forwarding;
mod learning;
mod loading;
mod monitored;
mod nodes;
mod sources;
mod stack;
mod truncation;
