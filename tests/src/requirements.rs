//! What a test needs of the machine, and what becomes of it where that is missing: a skip that can
//! be seen and counted, or, where everything must run, a failure.

use std::fs::{self, OpenOptions};
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

/// Whether the kernel is of this release or a later one; where it is not, the skip is recorded.
///
/// # Panics
/// As [`root`], and when the kernel's release is no release.
#[must_use]
pub fn linux(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("release of the kernel");
    let is_there = at_least(&release, (major, minor)).expect("release of the kernel");
    if !is_there {
        skip(&format!("needs Linux {major}.{minor}"));
    }
    is_there
}

fn at_least(release: &str, wanted: (u32, u32)) -> Option<bool> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) >= wanted)
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

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn releases_are_held_against_each_other_number_by_number() {
        for release in ["6.7.0-rc1", "6.18.44-fc-v669", "7.2.13+deb14-amd64"] {
            assert_eq!(at_least(release, (6, 7)), Some(true), "{release}");
        }
        for release in ["5.10.0-46-amd64", "6.1.0-56-amd64"] {
            assert_eq!(at_least(release, (6, 7)), Some(false), "{release}");
        }
    }
}
