//! What a test needs of the machine, and what becomes of it where that is missing: a skip that can
//! be seen and counted, or, where everything must run, a failure.

use std::fs::OpenOptions;
use std::io::Write;

/// Environment variable that turns every skip into a failure.
pub const REQUIRE_ALL: &str = "MARGAY_REQUIRE_ALL";
/// Environment variable that names the file to which each skip adds a line, so that it can be
/// counted.
pub const SKIP_LOG: &str = "MARGAY_SKIP_LOG";

/// Whether the test may go on; where it may not, the skip is recorded.
///
/// # Panics
/// When a requirement is missing and [`REQUIRE_ALL`] is set, or the skip cannot be recorded.
#[must_use]
pub fn root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("needs root");
    }
    is_root
}

/// Records that the test cannot go on.
///
/// # Panics
/// When [`REQUIRE_ALL`] is set, or it cannot be recorded.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    assert!(std::env::var_os(REQUIRE_ALL).is_none(), "{test} {reason}, and {REQUIRE_ALL} is set");
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os(SKIP_LOG) {
        let log = OpenOptions::new().create(true).append(true).open(path);
        writeln!(log.expect("open the skip log"), "{test}: {reason}").expect("record the skip");
    }
}
