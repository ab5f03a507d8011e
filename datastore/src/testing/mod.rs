//! Test support: what every backend must do, a backend in memory, and one that fails on purpose.
//!
//! Built for this crate's tests and, with the feature `test-support`, for those of others. No
//! product code may use it.

pub mod contract;
mod faulty;
mod memory;

pub use faulty::{Fault, Faulty};
pub use memory::Memory;
