//! `cargo xtask build-ebpf`: the one builder of the kernel half.
