//! Times on the kernel's boot clock, which nobody sets and which goes on while the machine sleeps.
//!
//! Comparable between processes of one boot; a time means nothing without the boot's ID.

use rustix::time::{ClockId, clock_gettime};

/// Microseconds since the boot.
#[must_use]
pub fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).unwrap_or(0)
}
