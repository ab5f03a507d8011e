//! Several nodes as network namespaces, with the real plugin, the real agent and real traffic.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agents;
mod blocks;
mod failures;
mod fast_path;
mod nodes;
mod operator;
mod packets;
mod pools;
mod reach;
mod stream;
mod upkeep;
