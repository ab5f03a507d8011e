//! The agent of a node: it makes the pods of all nodes reach each other.
//!
//! The datastore says which node has which addresses ([`topology`]); what follows for this node is
//! computed whole each time ([`remote`]) and then made so in the kernel ([`kernel`]), change by change.
//!
//! Invariant: everything that the agent makes stays when it ends, and is found again when it starts, so
//! that no packet depends on its being there. It takes nothing away before it has read the whole
//! datastore.
#![deny(unsafe_code)]

pub mod agent;
pub mod configuration;
pub mod fast_path;
pub mod following;
pub mod kernel;
pub mod liveness;
pub mod measured;
pub mod metrics;
pub mod node;
pub mod notify;
pub mod overlay;
pub mod remote;
pub mod server;
pub mod topology;
pub mod underlay;
pub mod upkeep;
