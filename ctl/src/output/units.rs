//! Numbers as people read them. Documents have them as they are.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Cells of a bar.
const BAR: u32 = 20;

/// How long ago a moment was, in seconds since the Unix epoch: `5s`, `12m`, `3h`, `4d`.
pub(crate) fn age(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match now.saturating_sub(at) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Bytes: `512 B`, `1.5 KiB`, `8.0 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Bits per second of a rate in bytes per second: `1.0 Mbit/s`.
pub(crate) fn bit_rate(bytes_per_s: u64) -> String {
    let bits = bytes_per_s.saturating_mul(8);
    scaled(bits, 1000.0, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn scaled(number: u64, step: f64, units: [&str; 5]) -> String {
    let mut number = number as f64;
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} {}", units[0])
    } else {
        format!("{number:.1} {}", units[unit])
    }
}

/// Thousands of a whole that are taken; `None` of nothing.
pub(crate) fn per_mille(used: u128, whole: u128) -> Option<u32> {
    let part = used.min(whole);
    // Past 2^118 the product would not fit; so much of a pool is never out.
    u32::try_from(part.checked_mul(1000).unwrap_or(0).checked_div(whole)?).ok()
}

/// How full something is: `[####------] 41%`. What is not empty shows at least one mark.
pub(crate) fn bar(used: u128, whole: u128) -> String {
    let Some(share) = per_mille(used, whole) else { return String::new() };
    let marks = (share * BAR / 1000).max(u32::from(used > 0));
    let mut bar = String::from("[");
    (0..BAR).for_each(|cell| bar.push(if cell < marks { '#' } else { '-' }));
    // Writing to a string does not fail.
    _ = write!(bar, "] {}%", share / 10);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_the_unit_that_fits() {
        assert_eq!(
            (bytes(0), bytes(1023), bytes(1536)),
            ("0 B".into(), "1023 B".into(), "1.5 KiB".into())
        );
        assert_eq!(bit_rate(125_000), "1.0 Mbit/s");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn a_bar_shows_the_least_use_and_overflows_nowhere() {
        assert_eq!(bar(0, 10), "[--------------------] 0%");
        assert_eq!(bar(1, 1000), "[#-------------------] 0%");
        assert_eq!(bar(10, 10), "[####################] 100%");
        assert_eq!(bar(11, 10), bar(10, 10));
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(1, u128::MAX), "[#-------------------] 0%");
    }

    #[test]
    fn an_age_has_one_unit() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(age(now + 5), "0s");
        assert_eq!(
            (age(now - 600), age(now - 86_400), age(0)),
            ("10m".into(), "24h".into(), format!("{}d", now / 86_400))
        );
    }
}
