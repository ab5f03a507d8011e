//! A row's sheet: what was measured, on which machine, and what that says of the goals. Its JSON is
//! what `target/bench/<row>.json` holds.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::Effort;
use crate::machine::Machine;
use crate::rows::Row;
use crate::statistics::{self, Spread, Statistic, Summary};

/// Version of the JSON: grows when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Everything of one row.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sheet {
    schema: u32,
    pub(crate) row: String,
    pub(crate) title: String,
    pub(crate) method: String,
    pub(crate) quick: bool,
    pub(crate) machine: Machine,
    /// How long the row took.
    pub(crate) seconds: f64,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) notes: Vec<String>,
}

/// Samples of one thing of one peer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) unit: Unit,
    pub(crate) summary: Summary,
    /// In the order in which they were taken: sample *i* of two peers is a pair.
    pub(crate) samples: Vec<f64>,
}

/// What was measured (`wall time`), in which case (`1,000 pods`; empty if there is one only), of
/// which peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) metric: String,
    pub(crate) case: String,
    pub(crate) peer: String,
}

impl Key {
    pub(crate) fn new(metric: &str, case: &str, peer: impl ToString) -> Self {
        Self { metric: metric.to_owned(), case: case.to_owned(), peer: peer.to_string() }
    }
}

/// Of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "µs")]
    Microseconds,
    #[serde(rename = "ns")]
    Nanoseconds,
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "Gbit/s")]
    GigabitsPerSecond,
    #[serde(rename = "KiB")]
    Kibibytes,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "")]
    Count,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Nanoseconds => "ns",
            Self::PerSecond => "/s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::Kibibytes => "KiB",
            Self::Mebibytes => "MiB",
            Self::Count => "",
        }
    }
}

/// What a goal asks of a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// A goal, and what was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// In words, without the limit.
    pub(crate) subject: String,
    pub(crate) limit: Limit,
    /// Of the limit and the value; `None` where they are a multiple of `reference`.
    pub(crate) unit: Option<Unit>,
    /// What the value is a multiple of.
    pub(crate) reference: Option<String>,
    pub(crate) value: f64,
    pub(crate) quartiles: Option<(f64, f64)>,
    pub(crate) met: bool,
}

impl Sheet {
    pub(crate) fn new(row: &Row, effort: Effort, machine: Machine) -> Self {
        Self {
            schema: SCHEMA,
            row: row.name.to_owned(),
            title: row.title.to_owned(),
            method: row.method.to_owned(),
            quick: effort.quick,
            machine,
            seconds: 0.0,
            measurements: Vec::new(),
            goals: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds samples.
    pub(crate) fn record(&mut self, key: Key, unit: Unit, samples: Vec<f64>) {
        let summary = Summary::of(&samples);
        self.measurements.push(Measurement { key, unit, summary, samples });
    }

    /// Adds something that a reader of the numbers has to know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a goal: a number of `of` as a multiple of the same number of `to`.
    pub(crate) fn goal(
        &mut self,
        statistic: Statistic,
        of: &Key,
        limit: Limit,
        to: &Key,
    ) -> Result<()> {
        let ratio = statistics::ratio(statistic, self.samples(of)?, self.samples(to)?);
        let subject =
            format!("{} of {}", statistic.name(), words(&[&of.metric, &of.case, &of.peer]));
        let mut reference = Vec::new();
        for (one, other) in [(&to.case, &of.case), (&to.peer, &of.peer), (&to.metric, &of.metric)] {
            if one != other {
                reference.push(one.as_str());
            }
        }
        let reference = if reference.is_empty() { "itself".to_owned() } else { words(&reference) };
        self.judge(subject, limit, None, Some(reference), ratio);
        Ok(())
    }

    /// Adds a goal: a number itself.
    pub(crate) fn absolute_goal(
        &mut self,
        statistic: Statistic,
        of: &Key,
        limit: Limit,
    ) -> Result<()> {
        let samples = self.samples(of)?;
        let spread = match statistic {
            Statistic::Median => statistics::spread(samples),
            Statistic::P99 => Spread { value: statistic.of(samples), quartiles: None },
        };
        let unit = self.measurement(of)?.unit;
        let subject =
            format!("{} of {}", statistic.name(), words(&[&of.metric, &of.case, &of.peer]));
        self.judge(subject, limit, Some(unit), None, spread);
        Ok(())
    }

    fn judge(
        &mut self,
        subject: String,
        limit: Limit,
        unit: Option<Unit>,
        reference: Option<String>,
        Spread { value, quartiles }: Spread,
    ) {
        let met = limit.is_met_by(value);
        self.goals.push(Goal { subject, limit, unit, reference, value, quartiles, met });
    }

    pub(crate) fn samples(&self, key: &Key) -> Result<&[f64]> {
        let samples = self.measurement(key)?.samples.as_slice();
        ensure!(!samples.is_empty(), "no samples of {key:?}");
        Ok(samples)
    }

    fn measurement(&self, key: &Key) -> Result<&Measurement> {
        let found = self.measurements.iter().find(|measurement| measurement.key == *key);
        found.with_context(|| format!("{key:?} was not measured"))
    }
}

fn words(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    #[test]
    fn a_goal_is_met_by_what_was_measured_alone() {
        let effort = Effort { quick: true, large: false };
        let mut sheet = Sheet::new(&ROWS[0], effort, Machine::look());
        let (fast, slow) = (Key::new("time", "", "fast"), Key::new("time", "", "slow"));
        sheet.record(fast.clone(), Unit::Milliseconds, vec![1.0, 2.0, 4.0]);
        sheet.record(slow.clone(), Unit::Milliseconds, vec![2.0, 4.0, 8.0]);

        for limit in [Limit::AtMost(0.5), Limit::AtMost(0.4), Limit::AtLeast(0.6)] {
            sheet.goal(Statistic::Median, &fast, limit, &slow).unwrap();
        }
        sheet.absolute_goal(Statistic::Median, &slow, Limit::AtMost(4.0)).unwrap();
        let never = Key::new("time", "", "never");
        assert!(sheet.goal(Statistic::Median, &never, Limit::AtMost(1.0), &slow).is_err());

        let judged: Vec<_> = sheet.goals.iter().map(|goal| (goal.value, goal.met)).collect();
        assert_eq!(judged, [(0.5, true), (0.5, false), (0.5, false), (4.0, true)]);
        assert_eq!(sheet.goals[0].subject, "p50 of time, fast");
        assert_eq!(sheet.goals[0].reference.as_deref(), Some("slow"));
    }

    #[test]
    fn a_sheet_comes_back_from_its_json() {
        let mut sheet =
            Sheet::new(&ROWS[0], Effort { quick: false, large: false }, Machine::look());
        sheet.record(Key::new("a", "b", "c"), Unit::Microseconds, vec![1.5, 2.5]);
        sheet.absolute_goal(Statistic::P99, &Key::new("a", "b", "c"), Limit::AtMost(2.0)).unwrap();

        let json = serde_json::to_value(&sheet).unwrap();
        let back: Sheet = serde_json::from_value(json.clone()).unwrap();

        assert_eq!(serde_json::to_value(&back).unwrap(), json);
        assert_eq!(json["measurements"][0]["metric"], "a");
    }
}
