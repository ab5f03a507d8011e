//! Tests against the kernel. Each runs on a thread that has a network and a mount namespace and a
//! BPF file system of its own, so they run in parallel and leave nothing.

mod attach;
mod load;
mod maps;
mod monitor;
mod node;
mod nodes;
mod tcx;
mod timing;
