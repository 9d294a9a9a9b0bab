//! Percentile bootstrap over functions (Efron 1979).
//!
//! Mutants, tests and samples of one function hang together, so functions are what is drawn: one [`Ratio`] per function,
//! and a rate is the sum of numerators over the sum of denominators.

use crate::Interval;
use crate::philox::Stream;
use crate::summary::quantile;

/// What one function adds to a rate: 1 of 1, or 13 killed of 20 mutants.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ratio {
    pub numerator: f64,
    pub denominator: f64,
}

impl Ratio {
    pub fn new(numerator: f64, denominator: f64) -> Self {
        Self { numerator, denominator }
    }

    /// One trial.
    pub fn hit(is_hit: bool) -> Self {
        Self::new(f64::from(u8::from(is_hit)), 1.0)
    }
}

/// How the resamples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub seed: u64,
    pub resamples: u32,
}

impl Settings {
    /// 2,000 resamples.
    pub fn new(seed: u64) -> Self {
        Self { seed, resamples: 2_000 }
    }
}

/// Sum of numerators over sum of denominators; `None` when the latter is 0.
pub fn rate(functions: &[Ratio]) -> Option<f64> {
    let (n, d) = functions.iter().fold((0.0, 0.0), |(n, d), r| (n + r.numerator, d + r.denominator));
    (d > 0.0).then(|| n / d)
}

/// 95 % interval of [`rate`]. `None` when there is no rate, or when fewer than 95 % of the resamples have one.
pub fn rate_interval(functions: &[Ratio], settings: Settings) -> Option<Interval> {
    rate(functions)?;
    interval(functions.len(), settings, |drawn| rate_of(functions, drawn))
}

/// `rate(tuned) - rate(base)` with its 95 % interval. The two lists hold the same functions in the same order, and each
/// resample draws the same functions of both: what the functions have in common cancels.
///
/// `None` when the lists differ in length or one of the rates does not exist.
pub fn paired_difference(tuned: &[Ratio], base: &[Ratio], settings: Settings) -> Option<(f64, Interval)> {
    if tuned.len() != base.len() {
        return None;
    }
    let difference = rate(tuned)? - rate(base)?;
    let interval =
        interval(tuned.len(), settings, |drawn| Some(rate_of(tuned, drawn)? - rate_of(base, drawn)?))?;
    Some((difference, interval))
}

fn rate_of(functions: &[Ratio], drawn: &[usize]) -> Option<f64> {
    let (n, d) = drawn
        .iter()
        .fold((0.0, 0.0), |(n, d), &i| (n + functions[i].numerator, d + functions[i].denominator));
    (d > 0.0).then(|| n / d)
}

fn interval(n: usize, settings: Settings, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
    let n_functions = u32::try_from(n).ok().filter(|&n| n > 0)?;
    let mut stream = Stream::new(settings.seed, 0);
    let mut drawn = vec![0; n];
    let mut values = Vec::with_capacity(settings.resamples as usize);
    for _ in 0..settings.resamples {
        drawn.iter_mut().for_each(|i| *i = stream.below(n_functions) as usize);
        values.extend(statistic(&drawn));
    }
    if values.is_empty() || (values.len() as f64) < 0.95 * f64::from(settings.resamples) {
        return None;
    }
    Some(Interval { low: quantile(&values, 0.025)?, high: quantile(&values, 0.975)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_interval_of_a_proportion_is_near_the_normal_one() {
        let functions: Vec<Ratio> = (0..400).map(|i| Ratio::hit(i % 4 == 0)).collect();
        let i = rate_interval(&functions, Settings::new(1)).unwrap();
        let half = 1.96 * (0.25f64 * 0.75 / 400.0).sqrt();
        assert!((i.low - (0.25 - half)).abs() < 0.008 && (i.high - (0.25 + half)).abs() < 0.008, "{i:?}");
    }

    #[test]
    fn exact_over_all_resamples_of_two_functions() {
        // Four equally likely draws: rates 0, 1/2, 1/2, 1. So the 2.5 % quantile is 0 and the 97.5 % one is 1.
        let functions = [Ratio::hit(false), Ratio::hit(true)];
        let i = rate_interval(&functions, Settings::new(3)).unwrap();
        assert_eq!((i.low, i.high), (0.0, 1.0));
    }

    #[test]
    fn pairing_removes_what_functions_share() {
        let tuned: Vec<Ratio> = (0..100).map(|i| Ratio::new(f64::from(i % 10) + 1.0, 10.0)).collect();
        let base: Vec<Ratio> = (0..100).map(|i| Ratio::new(f64::from(i % 10), 10.0)).collect();
        let (difference, i) = paired_difference(&tuned, &base, Settings::new(5)).unwrap();
        assert!((difference - 0.1).abs() < 1e-12);
        assert!((i.low - 0.1).abs() < 1e-9 && (i.high - 0.1).abs() < 1e-9);
        assert_eq!(paired_difference(&tuned, &base[1..], Settings::new(5)), None);
    }

    #[test]
    fn no_denominator_no_rate() {
        assert_eq!(rate(&[]), None);
        assert_eq!(rate_interval(&[Ratio::default()], Settings::new(1)), None);
        let rare: Vec<Ratio> = (0..10).map(|i| Ratio::new(0.0, f64::from(u8::from(i == 0)))).collect();
        assert_eq!(rate_interval(&rare, Settings::new(1)), None, "a third of the resamples have no rate");
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_interval_around_the_rate(
            hits in proptest::collection::vec(any::<bool>(), 5..40), seed in any::<u64>(),
        ) {
            let functions: Vec<Ratio> = hits.into_iter().map(Ratio::hit).collect();
            let settings = Settings { seed, resamples: 300 };
            let i = rate_interval(&functions, settings).unwrap();
            prop_assert_eq!(rate_interval(&functions, settings).unwrap(), i);
            let r = rate(&functions).unwrap();
            prop_assert!(i.low <= r + 0.1 && r <= i.high + 0.1 && i.low >= 0.0 && i.high <= 1.0);
        }
    }
}
