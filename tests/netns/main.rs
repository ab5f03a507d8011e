//! Tests on a real kernel: a node and its pods are network namespaces, the plugins are the real
//! binaries, traffic is real.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bandwidth;
mod chain;
mod conntrack;
mod first_packet;
mod framing;
mod interference;
mod kube_proxy;
mod kube_proxy_load;
mod lifecycle;
mod link_local;
mod nat;
mod nodes;
mod nodes_services;
mod outside;
mod pings;
mod services;
mod spoofing;
mod stack_mode;
mod tcx;
mod upkeep;
mod upkeep_builds;
mod upkeep_killed;
mod vxlan;
