//! Time, and how long to try.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::IpamError;

/// How long an operation keeps losing to others before it gives up.
const PATIENCE: Duration = Duration::from_secs(15);
/// Conflicts that are answered by trying again at once.
const IMPATIENT_TRIES: u32 = 2;

/// Counts the conflicts of one operation, and spreads the losers in time.
pub(super) struct Patience {
    started: Instant,
    conflicts: u32,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), conflicts: 0 }
    }

    /// One that the next conflict exhausts.
    #[cfg(test)]
    pub(super) fn spent() -> Self {
        let started = Instant::now().checked_sub(2 * PATIENCE);
        Self { started: started.unwrap_or_else(Instant::now), conflicts: 0 }
    }

    /// To be called after each lost race.
    pub(super) fn conflict(&mut self) -> Result<(), IpamError> {
        self.conflicts += 1;
        if self.started.elapsed() > PATIENCE {
            return Err(IpamError::Contended);
        }
        if self.conflicts > IMPATIENT_TRIES {
            let ceiling_us = 250 * u64::from(self.conflicts.min(16));
            thread::sleep(Duration::from_micros(
                u64::from(since_epoch().subsec_nanos()) % ceiling_us,
            ));
        }
        Ok(())
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// A name that no other call on any node of the store gets: time, process, and a count within it.
pub(super) fn unique() -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let (nanos, call) = (since_epoch().as_nanos(), CALLS.fetch_add(1, Ordering::Relaxed));
    format!("{nanos:x}-{:x}-{call:x}", process::id())
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
