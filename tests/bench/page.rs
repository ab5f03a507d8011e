//! The page: goals first, then every row with its charts and its table.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::chart;
use crate::machine::Machine;
use crate::sheet::{Goal, Limit, Measurement, Sheet, Unit};

/// Writes the page to `file` and its charts into `folder` beside it.
pub(crate) fn write(sheets: &[Sheet], file: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let links = folder.file_name().context("a folder for the charts")?.display().to_string();
    let mut page = String::from(HEADER);
    _ = write!(page, "\n## Goals\n\n{}", goals(sheets));
    _ = write!(page, "\n## Where and when\n\n{}", machines(sheets));
    for sheet in sheets {
        _ = write!(page, "\n## {}\n\n{}\n", sheet.title, sheet.method);
        for metric in metrics(sheet) {
            let measurements: Vec<_> = of_metric(sheet, metric).collect();
            let name = format!("{}-{}.svg", sheet.row, metric.to_lowercase().replace(' ', "-"));
            fs::write(folder.join(&name), chart::bars(metric, &measurements))?;
            _ = writeln!(page, "\n![{metric}]({links}/{name})\n");
            page.push_str(&table(metric, &measurements));
        }
        if !sheet.goals.is_empty() {
            _ = write!(page, "\n{}", goals(std::slice::from_ref(sheet)));
        }
        for note in &sheet.notes {
            _ = write!(page, "\n- {note}");
        }
        if !sheet.notes.is_empty() {
            page.push('\n');
        }
    }
    fs::write(file, page).with_context(|| format!("write {}", file.display()))
}

const HEADER: &str = "\
# Benchmarks

```console
# cargo xtask bench               # every row, and this page
# cargo xtask bench add del       # some rows, to target/bench/
# cargo xtask bench --list        # which there are
```

Everything is measured side by side in one run, in alternation, each plugin on a node of its own made of
namespaces. Peers are `margay linux` (margay with `\"dataplane\": \"linux\"`, which does what the standard plugin does),
`ptp` and `bridge` of the CNI project with `host-local`. What the kernel makes of it without any plugin is `bare veth`,
one veth pair between two namespaces, and for packets `bare redirect`: two pairs, and on each a TC program of four
instructions that does nothing but redirect to the other pod. Where that is already short of a goal beside the
bare pair, margay is to be within 1.2 times of it. Numbers are medians with their quartiles, p25–p75; ratios are medians of the ratios of pairs,
with theirs. The samples are in the JSON that a run leaves in `target/bench/`.
";

/// The goals of these rows, and whether they are met.
pub(crate) fn goals(sheets: &[Sheet]) -> String {
    let mut text = String::from("| goal | | measured | |\n| --- | --- | --- | --- |\n");
    for sheet in sheets {
        for goal in &sheet.goals {
            let met = if goal.met { "met" } else { "**not met**" };
            let (limit, measured) = (limit(goal), measured(goal));
            _ = writeln!(
                text,
                "| {}: {} | {limit} | {measured} | {met} |",
                sheet.title, goal.subject
            );
        }
    }
    text
}

fn limit(goal: &Goal) -> String {
    let (sign, limit) = match goal.limit {
        Limit::AtMost(limit) => ("≤", limit),
        Limit::AtLeast(limit) => ("≥", limit),
    };
    // 0.97 as it is, 1 / 1.2 not in all its digits.
    let limit = (limit * 1e3).round() / 1e3;
    match (&goal.reference, goal.unit) {
        (Some(reference), _) => format!("{sign} {limit} × {reference}"),
        (None, unit) => format!("{sign} {limit} {}", unit.unwrap_or(Unit::Count).name()),
    }
}

fn measured(goal: &Goal) -> String {
    let unit = goal.unit.map_or("×", Unit::name);
    let value = number(goal.value);
    match goal.quartiles {
        Some((low, high)) => format!("{value} {unit} ({}–{})", number(low), number(high)),
        None => format!("{value} {unit}"),
    }
}

/// One line for all rows, if they were measured in one place and one go.
fn machines(sheets: &[Sheet]) -> String {
    let mut text = String::new();
    let Some(first) = sheets.first() else { return text };
    let Machine { kernel, cpu, cpus, memory_mib, peers, .. } = &first.machine;
    _ = writeln!(text, "- {cpu}, {cpus} CPUs, {memory_mib} MiB, Linux {kernel}");
    for peer in peers {
        _ = writeln!(text, "- {peer}");
    }
    _ = writeln!(text, "\n| row | measured | load average | took | margay |");
    _ = writeln!(text, "| --- | --- | --- | --- | --- |");
    for sheet in sheets {
        let Machine { date, load, margay, .. } = &sheet.machine;
        let quick = if sheet.quick { ", few samples" } else { "" };
        _ = writeln!(
            text,
            "| {} | {date}{quick} | {load} | {} s | {margay} |",
            sheet.row, sheet.seconds
        );
    }
    text
}

fn metrics(sheet: &Sheet) -> Vec<&str> {
    let mut metrics: Vec<&str> = Vec::new();
    for measurement in &sheet.measurements {
        if !metrics.contains(&measurement.key.metric.as_str()) {
            metrics.push(&measurement.key.metric);
        }
    }
    metrics
}

fn of_metric<'a>(sheet: &'a Sheet, metric: &'a str) -> impl Iterator<Item = &'a Measurement> {
    sheet.measurements.iter().filter(move |measurement| measurement.key.metric == metric)
}

fn table(metric: &str, measurements: &[&Measurement]) -> String {
    let unit = measurements.first().map_or("", |measurement| measurement.unit.name());
    let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
    let mut text = format!("| {metric}{unit} | | p50 | p25–p75 | p99 | samples |\n");
    text.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for Measurement { key, summary, .. } in measurements {
        let [p25, p50, p75, p99] = [summary.p25, summary.p50, summary.p75, summary.p99].map(number);
        let n = summary.n;
        _ = writeln!(text, "| {} | {} | {p50} | {p25}–{p75} | {p99} | {n} |", key.case, key.peer);
    }
    text
}

/// With three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
