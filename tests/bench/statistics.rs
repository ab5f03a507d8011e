//! Medians, quantiles, and ratios of pairs.

use serde::{Deserialize, Serialize};

/// Samples in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) p25: f64,
    pub(crate) p50: f64,
    pub(crate) p75: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    pub(crate) fn of(samples: &[f64]) -> Self {
        let sorted = sorted(samples);
        let at = |share| quantile(&sorted, share);
        Self {
            n: sorted.len(),
            min: at(0.0),
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Which number of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistic {
    Median,
    P99,
}

impl Statistic {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Median => "p50",
            Self::P99 => "p99",
        }
    }

    pub(crate) fn of(self, samples: &[f64]) -> f64 {
        match self {
            Self::Median => quantile(&sorted(samples), 0.5),
            Self::P99 => quantile(&sorted(samples), 0.99),
        }
    }
}

/// A number with its quartiles, where it has any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) value: f64,
    pub(crate) quartiles: Option<(f64, f64)>,
}

/// How much the one is of the other. For medians of as many samples, the median of the pairs'
/// ratios, with their quartiles; else the ratio of the two numbers.
pub(crate) fn ratio(statistic: Statistic, of: &[f64], to: &[f64]) -> Spread {
    if statistic == Statistic::Median && of.len() == to.len() {
        let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        return spread(&ratios);
    }
    Spread { value: statistic.of(of) / statistic.of(to), quartiles: None }
}

/// The median with its quartiles.
pub(crate) fn spread(samples: &[f64]) -> Spread {
    let Summary { p25, p50, p75, n, .. } = Summary::of(samples);
    Spread { value: p50, quartiles: (n > 1).then_some((p25, p75)) }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Between the two samples that are next to it, by distance.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = last as f64 * share;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let summary = Summary::of(&[5.0, 1.0, 2.0, 4.0, 3.0]);
        assert_eq!((summary.min, summary.p25, summary.p50), (1.0, 2.0, 3.0));
        assert_eq!((summary.p75, summary.max, summary.n), (4.0, 5.0, 5));
        assert!((summary.p99 - 4.96).abs() < 1e-9);
    }

    #[test]
    fn pairs_are_compared_before_they_are_summed_up() {
        // Both grow tenfold in the middle: the pairs do not notice.
        let (one, two) = ([1.0, 10.0, 2.0], [2.0, 20.0, 4.0]);
        let paired = ratio(Statistic::Median, &one, &two);
        assert_eq!(paired, Spread { value: 0.5, quartiles: Some((0.5, 0.5)) });
        assert_eq!(ratio(Statistic::Median, &one, &[4.0]).value, 0.5);
        assert_eq!(ratio(Statistic::P99, &one, &one).value, 1.0);
    }
}
