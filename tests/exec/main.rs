//! The real binaries, executed with an environment and a standard input: what they answer, and what
//! they leave behind when they fail.

mod answers;
mod collection;
mod concurrency;
mod delegation;
mod economy;
mod residue;
mod sabotage;
