//! The kernel half compiled for the host, and what must hold of it whatever a packet is.
//!
//! The kernel half is a program for the BPF target and no library, so its modules are included
//! here by their paths, as they are. What is added stands apart from them and shares no code: a
//! packet in a buffer, maps in memory, and [`from_pod()`], [`to_pod()`] and [`node()`], which hand a frame
//! to the decisions and panic where one breaks its promise.

#[path = "../../../ebpf/src/arp.rs"]
mod arp;
#[path = "../../../ebpf/src/checksum.rs"]
mod checksum;
#[path = "../../../ebpf/src/encapsulated.rs"]
mod encapsulated;
#[path = "../../../ebpf/src/ethernet.rs"]
mod ethernet;
#[path = "../../../ebpf/src/flow_hash.rs"]
mod flow_hash;
#[path = "../../../ebpf/src/from_node.rs"]
mod from_node;
#[path = "../../../ebpf/src/from_pod.rs"]
mod from_pod;
#[path = "../../../ebpf/src/ip.rs"]
mod ip;
#[path = "../../../ebpf/src/maps.rs"]
mod maps;
#[path = "../../../ebpf/src/ndp.rs"]
mod ndp;
#[path = "../../../ebpf/src/packet.rs"]
mod packet;
#[path = "../../../ebpf/src/pod_to_node.rs"]
mod pod_to_node;
#[path = "../../../ebpf/src/report.rs"]
mod report;
#[path = "../../../ebpf/src/to_node.rs"]
mod to_node;
#[path = "../../../ebpf/src/to_pod.rs"]
mod to_pod;
#[path = "../../../ebpf/src/transport.rs"]
mod transport;
#[path = "../../../ebpf/src/verdict.rs"]
mod verdict;
#[path = "../../../ebpf/src/vxlan.rs"]
mod vxlan;
#[path = "../../../ebpf/src/words.rs"]
mod words;

mod buffer;
mod from_pod_promises;
mod node_promises;
mod reading;
mod scene;
mod to_pod_promises;

pub use from_pod_promises::check as from_pod;
pub use node_promises::check as node;
pub use to_pod_promises::check as to_pod;
