//! Harness of the tests in real container runtimes: a private runtime on a
//! [`Node`](margay_tests::Node), and pods that it makes.
//!
//! Invariant: nothing here outlives the test, however it ends, and the machine's own runtime is not
//! touched. Where a runtime insists on a path, the node has a mount of its own there.

mod containerd;
mod cri;
mod image;
mod machine;
mod pod;
mod podman;

pub use containerd::Containerd;
pub use cri::{PortMapping, TCP, UDP};
pub use machine::wait_until;
pub use pod::{Pod, PodSpec};
pub use podman::{Container, Podman};
