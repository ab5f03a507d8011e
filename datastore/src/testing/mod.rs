//! Test support: what every backend must do, a backend in memory, one that fails on purpose, one
//! that counts, one that something happens in the midst of, and a real etcd.
//!
//! Built for this crate's tests and, with the feature `test-support`, for those of others. No
//! product code may use it.

pub mod contract;
mod counting;
pub mod etcd;
mod faulty;
mod hooked;
mod memory;

pub use counting::Counting;
pub use faulty::{Fault, Faulty};
pub use hooked::Hooked;
pub use memory::Memory;
