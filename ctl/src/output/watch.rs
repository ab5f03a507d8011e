//! Showing a report again when it changes, until somebody interrupts.

use std::io::{IsTerminal as _, Write as _};

use super::{Format, Report, rendered};
use crate::arguments::Watched;
use crate::failure::Failure;

/// To the terminal: cursor home, and clear what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows what `look` finds, once or, as asked, whenever it is something else. On a terminal, text takes
/// the place of the one before; elsewhere it is printed behind it, each document by itself.
pub(crate) async fn show_or_watch<R: Report>(
    watched: &Watched,
    format: Format,
    mut look: impl AsyncFnMut() -> Result<R, Failure>,
) -> Result<(), Failure> {
    if !watched.watch {
        return super::show(&look().await?, format);
    }
    let replaces = format == Format::Table && std::io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let text = rendered(&look().await?, format)?;
        if text != shown {
            let mut out = anstream::stdout().lock();
            let clear = if replaces { CLEAR } else { "" };
            let between = if format == Format::Yaml { "---\n" } else { "" };
            let written = write!(out, "{clear}{between}{text}").and_then(|()| out.flush());
            written.map_err(Failure::Output)?;
            shown = text;
        }
        tokio::select! {
            () = tokio::time::sleep(watched.interval) => {}
            interrupted = tokio::signal::ctrl_c() => return interrupted.map_err(Failure::Output),
        }
    }
}
