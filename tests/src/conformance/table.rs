//! The outcomes as a table: for a terminal, and as Markdown for the documentation.

use std::fmt::Write;
use std::fs;

use super::{Check, Outcome, Subject};

/// A plugin with the outcome of every check, in their order.
pub type Column = (Subject, Vec<Outcome>);

/// The table for a terminal: a line per check, the reasons below it.
#[must_use]
pub fn text(checks: &[Check], columns: &[Column]) -> String {
    let mut text = String::new();
    let mut group = "";
    for (row, check) in checks.iter().enumerate() {
        if check.group != group {
            group = check.group;
            let names = columns.iter().map(|(subject, _)| format!("{:<8}", subject.name()));
            _ = writeln!(text, "\n{}{group}", names.collect::<String>());
        }
        let marks = columns.iter().map(|(_, outcomes)| format!("{:<8}", mark(&outcomes[row])));
        let marks: String = marks.collect();
        _ = writeln!(
            text,
            "{marks}{}\n{:indent$}{}",
            check.case,
            "",
            check.sentence,
            indent = marks.len() + 2
        );
        for (subject, outcomes) in columns {
            if let Outcome::Fail(reason) = &outcomes[row] {
                _ = writeln!(
                    text,
                    "{:indent$}{}: {reason}",
                    "",
                    subject.name(),
                    indent = marks.len() + 2
                );
            }
        }
    }
    text.push('\n');
    for (subject, outcomes) in columns {
        _ = writeln!(text, "{}: {}", subject.name(), summary(outcomes));
    }
    text
}

/// A page with how it was made, the table and the reasons.
#[must_use]
pub fn markdown(checks: &[Check], columns: &[Column]) -> String {
    let mut page = String::from(HEADER);
    for (subject, outcomes) in columns {
        let (name, description) = (subject.name(), subject.description());
        _ = writeln!(page, "- `{name}`: {description}: {}", summary(outcomes));
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    _ = writeln!(page, "\nOn Linux {}, {build} build of margay.", kernel.trim());
    let mut notes = Notes::default();
    let mut group = "";
    for (row, check) in checks.iter().enumerate() {
        if check.group != group {
            group = check.group;
            let names = columns.iter().map(|(subject, _)| format!(" {} |", subject.name()));
            _ = writeln!(page, "\n## {group}\n");
            _ = writeln!(
                page,
                "| the specification | what is tried |{}",
                names.collect::<String>()
            );
            _ = writeln!(page, "| --- | --- |{}", " --- |".repeat(columns.len()));
        }
        let cells = columns.iter().map(|(_, outcomes)| {
            let outcome = &outcomes[row];
            match notes.number(outcome) {
                Some(number) => format!(" {} [{number}](#note-{number}) |", mark(outcome)),
                None => format!(" {} |", mark(outcome)),
            }
        });
        let cells: String = cells.collect();
        let is_repeated = row > 0 && checks[row - 1].sentence == check.sentence;
        let sentence = if is_repeated { "″".to_owned() } else { cell(check.sentence) };
        _ = writeln!(page, "| {sentence} | {} |{cells}", cell(check.case));
    }
    _ = writeln!(page, "\n## Notes\n");
    for (index, note) in notes.0.iter().enumerate() {
        let number = index + 1;
        _ = writeln!(page, "{number}. <a id=\"note-{number}\"></a>{note}");
    }
    page
}

const HEADER: &str = "\
# Conformance

What the [CNI specification 1.1](https://github.com/containernetworking/cni/blob/v1.3.0/SPEC.md) says of a plugin, tried
on margay and, as a yardstick for margay and for the suite, on two reference plugins. Every check has a node of
its own, made of namespaces. `n/a` is a check that is not about the plugin.

```console
# cargo xtask conformance                     # this page, to target/conformance.md
# cargo xtask conformance --plugin ptp --path /usr/lib/cni --conf tests/conformance/ptp.json
```

Any plugin can take it. `@DIR@` in its configuration stands for a directory that each check has to itself, with
the folders `state` and `run` and a BPF file system `bpf`; what the plugin stores has to go there. A plugin that
writes elsewhere writes to this machine.

";

/// Reasons, each once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn number(&mut self, outcome: &Outcome) -> Option<usize> {
        let note = match outcome {
            Outcome::Pass => return None,
            Outcome::NotApplicable(reason) | Outcome::Fail(reason) => code(reason),
        };
        let index = self.0.iter().position(|known| *known == note).unwrap_or_else(|| {
            self.0.push(note);
            self.0.len() - 1
        });
        Some(index + 1)
    }
}

fn mark(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail(_) => "FAIL",
        Outcome::NotApplicable(_) => "n/a",
    }
}

fn summary(outcomes: &[Outcome]) -> String {
    let count = |wanted: &str| outcomes.iter().filter(|outcome| mark(outcome) == wanted).count();
    let (passed, failed, other) = (count("pass"), count("FAIL"), count("n/a"));
    format!("{passed} passed, {failed} failed, {other} not applicable")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A reason without Markdown of its own, and without the names of temporary directories.
fn code(reason: &str) -> String {
    let words = reason.split(' ').map(|word| match word.split_once("/margay-test-") {
        Some((before, after)) => {
            let start = before.rfind(['"', '=', '\'']).map_or("", |index| &before[..=index]);
            let rest = after.split_once('/').map_or("", |(_, rest)| rest);
            format!("{start}@DIR@/{rest}")
        }
        None => word.to_owned(),
    });
    format!("`{}`", words.collect::<Vec<_>>().join(" ").replace('`', "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_no_temporary_directory() {
        let reason = r#"no "DEL a" among "ADD a /tmp/margay-test-3pD3E7/netns/a \n" CNI_NETNS=/tmp/margay-test-x/a"#;
        let wanted = r#"`no "DEL a" among "ADD a @DIR@/netns/a \n" CNI_NETNS=@DIR@/a`"#;
        assert_eq!(code(reason), wanted);
    }
}
