//! The events of a reporter, as aya-log carries them.
//!
//! The ring belongs to the reporter alone and is found through its number: aya looks through all loaded
//! programs for it.

use std::fmt;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use margay_abi::event::Event;

use crate::ProgramId;

/// The reader's end of a reporter's ring.
pub(crate) struct EventLog {
    ring: EbpfLogger<Collector>,
    collector: Collector,
}

impl EventLog {
    pub(crate) fn open(reporter: ProgramId) -> Result<Self, aya_log::Error> {
        let collector = Collector::default();
        let ring = EbpfLogger::init_from_id_with_logger(reporter.0, collector.clone())?;
        Ok(Self { ring, collector })
    }

    /// Takes every event that is there, oldest first of each CPU; does not wait.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        self.ring.flush();
        self.collector.take()
    }
}

impl AsFd for EventLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventLog")
    }
}

/// What aya-log writes its records to.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Event>>>);

impl Collector {
    fn take(&self) -> Vec<Event> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let event = decode(&record.args().to_string());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(event);
    }

    fn flush(&self) {}
}

/// The event whose bytes are written in hexadecimal digits.
fn decode(digits: &str) -> Option<Event> {
    let digit = |digit: &u8| Some(char::from(*digit).to_digit(16)? as u8);
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect();
    bytemuck::try_pod_read_unaligned(&bytes?).ok()
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable as _, bytes_of};

    use super::*;

    #[test]
    fn an_event_is_its_bytes_digits_and_nothing_else_is_one() {
        let event = Event { at_ns: 0x0102_0304, ifindex: 0xab, ..Event::zeroed() };
        let digits: String = bytes_of(&event).iter().map(|byte| format!("{byte:02x}")).collect();

        assert_eq!(decode(&digits), Some(event));
        for bad in [&digits[1..], &digits[2..], &format!("{}0g", &digits[2..]), ""] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
