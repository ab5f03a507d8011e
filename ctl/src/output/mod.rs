//! How a report is shown: as text for people, or as a document for scripts.
//!
//! Invariant: a document has all that the text has, under names that stay. Text is coloured on a
//! terminal only, and never where `NO_COLOR` is set (`anstream` sees to that).

mod table;
mod units;
mod watch;

use std::fmt;
use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;

pub(crate) use table::{Cell, Table};
pub(crate) use units::{age, bar, bit_rate, bytes};
pub(crate) use watch::show_or_watch;

use crate::failure::Failure;

/// What a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// What a command has found.
pub(crate) trait Report: Serialize {
    /// For people.
    ///
    /// # Errors
    /// When `out` refuses.
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// As it is.
pub(crate) const PLAIN: Style = Style::new();
/// Headings.
pub(crate) const BOLD: Style = Style::new().bold();
/// What is of less interest.
pub(crate) const DIM: Style = Style::new().dimmed();
/// As it should be.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// To be looked at.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
/// Broken.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();

/// What comes from elsewhere loses its control characters, which a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// Prints a report.
pub(crate) fn show(report: &impl Report, format: Format) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let text = rendered(report, format)?;
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

fn rendered(report: &impl Report, format: Format) -> Result<String, Failure> {
    let failed =
        |error: &dyn fmt::Display| Failure::Output(std::io::Error::other(error.to_string()));
    let mut text = String::new();
    match format {
        Format::Table => report.write(&mut text).map_err(|error| failed(&error))?,
        Format::Json => {
            text = serde_json::to_string_pretty(report).map_err(|error| failed(&error))?;
            text.push('\n');
        }
        Format::Yaml => text = yaml_serde::to_string(report).map_err(|error| failed(&error))?,
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_printable() {
        assert_eq!(printable("a\u{1b}[2J\r\n\u{9b}1mb é"), "a[2J1mb é");
    }
}
