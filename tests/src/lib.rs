//! The harness of margay's tests: a node and its pods made of network namespaces, the plugins
//! executed as a runtime executes them, and traffic between the two.
//!
//! Invariant: nothing here outlives the test, however it ends, and nothing touches the machine's
//! own interfaces, mounts or state. A test's thread becomes a node: it gets a network and a mount
//! namespace of its own, and every process it starts inherits them.

pub mod cluster;
pub mod cni;
pub mod conflist;
pub mod conformance;
pub mod ctl;
pub mod echo;
pub mod kube_proxy;
pub mod namespace;
pub mod neighbours;
pub mod node;
pub mod numbers;
pub mod packet;
pub mod pod;
pub mod raw;
pub mod requirements;
pub mod residue;
pub mod sctp;
pub mod service;
pub mod traffic;

pub use cni::{CniOutput, Invocation};
pub use conflist::Conflist;
pub use neighbours::Neighbours;
pub use node::Node;
pub use pod::Pod;
