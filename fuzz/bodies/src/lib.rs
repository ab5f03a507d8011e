//! What each fuzz target does with an input: hands it to margay, and panics where a promise is
//! broken.
//!
//! The bodies are here, apart from the fuzzer, since two run them: `cargo xtask fuzz`, which
//! searches for new inputs, and the test `replay` of this package, which goes through the seeds of
//! `fuzz/corpus` and a few thousand fixed mutations of them wherever the tests run.
#![deny(unsafe_code)]

pub mod agent_conf;
pub mod cni_args;
pub mod netconf;
pub mod prev_result;
pub mod records;

use margay::config::ConfigError;
use margay::error::chain;
pub use margay_fuzz_kernel_half::{from_pod, node, to_pod};

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its fuzzer and of its folder of seeds.
    pub name: &'static str,
    /// Hands an input to margay.
    ///
    /// # Panics
    /// When a promise is broken.
    pub run: fn(&[u8]),
}

/// Every fuzz target.
pub const TARGETS: &[Target] = &[
    Target { name: "agent_conf", run: agent_conf::check },
    Target { name: "cni_args", run: cni_args::check },
    Target { name: "from_pod", run: from_pod },
    Target { name: "netconf", run: netconf::check },
    Target { name: "node", run: node },
    Target { name: "prev_result", run: prev_result::check },
    Target { name: "records", run: records::check },
    Target { name: "to_pod", run: to_pod },
];

/// An error of a configuration is one line that names a field.
fn assert_names_field(error: &ConfigError) {
    assert_one_line(&chain(error));
    match error {
        ConfigError::Invalid { field, .. }
        | ConfigError::Missing { field, .. }
        | ConfigError::Unsupported { field, .. } => assert!(!field.is_empty(), "{error}"),
        // A key of the document can be the empty string.
        _ => {}
    }
}

/// A message for an operator is one line, whatever the input that it quotes.
fn assert_one_line(message: &str) {
    assert!(!message.is_empty(), "an error without words");
    assert!(!message.contains(char::is_control), "control characters in {message:?}");
}
