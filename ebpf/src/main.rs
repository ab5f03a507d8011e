//! The kernel half of margay's dataplane: the TC programs [`from_pod`] and [`to_pod`] of each pod,
//! [`pod_to_node`], [`from_node`] and [`to_node`] of a node among others, and [`mod@report`] for whoever
//! listens to what these have to tell.
//!
//! All only accelerate. A packet they do not understand completely goes to the host's stack, which
//! has a route to every pod; only what a pod must not send at all is dropped.
//!
//! The object is built for the BPF target. On the host the same modules build with the standard
//! library, so that everything but the calls into the kernel is unit-tested there.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod arp;
mod checksum;
mod encapsulated;
mod ethernet;
mod flow_hash;
mod from_node;
mod from_pod;
mod ip;
mod maps;
mod ndp;
mod packet;
mod pod_to_node;
mod report;
mod to_node;
mod to_pod;
mod transport;
mod verdict;
mod vxlan;
mod words;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
#[path = "../../tests/src/packet.rs"]
#[expect(unreachable_pub, reason = "shared with the tests on a real kernel")]
mod frames;
#[cfg(test)]
mod from_pod_tests;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod report_tests;
#[cfg(test)]
mod to_pod_tests;

/// Several helpers are reserved to programs under a licence compatible with the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs run in the kernel; on the host there is nothing to start.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
