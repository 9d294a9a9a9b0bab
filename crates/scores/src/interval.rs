//! Confidence intervals and exact tests for a rate.

/// A closed interval of rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The two-sided 95 % quantile of the standard normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Wilson's score interval (Wilson 1927) for `k` successes of `n` at the normal quantile `z`.
///
/// `None` when `n` is 0 or `k` exceeds it.
pub fn wilson(k: u64, n: u64, z: f64) -> Option<Interval> {
    if n == 0 || k > n {
        return None;
    }
    let (n, p, zz) = (n as f64, k as f64 / n as f64, z * z);
    let middle = p + zz / (2.0 * n);
    let half = z * libm::sqrt(p * (1.0 - p) / n + zz / (4.0 * n * n));
    let scale = 1.0 + zz / n;
    Some(Interval { low: ((middle - half) / scale).max(0.0), high: ((middle + half) / scale).min(1.0) })
}

/// The exact binomial interval (Clopper and Pearson 1934) at `confidence`, such as 0.95.
///
/// `None` when `n` is 0, `k` exceeds it, or `confidence` lies outside 0..1.
pub fn clopper_pearson(k: u64, n: u64, confidence: f64) -> Option<Interval> {
    if n == 0 || k > n || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let tail = (1.0 - confidence) / 2.0;
    let low = if k == 0 { 0.0 } else { solve(|p| at_least(k, n, p) < tail) };
    let high = if k == n { 1.0 } else { solve(|p| at_least(k + 1, n, p) < 1.0 - tail) };
    Some(Interval { low, high })
}

/// P(X >= k) for X binomial with `n` trials of rate `p`: the p-value of "the rate is at most `p`" after seeing `k`.
pub fn at_least(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 {
        return 1.0;
    }
    if k > n {
        return 0.0;
    }
    incomplete_beta(p.clamp(0.0, 1.0), k as f64, (n - k + 1) as f64)
}

/// The largest `p` in 0..=1 for which the monotone predicate still holds.
fn solve(is_below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22) with Lentz's method.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let log_front =
        libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * libm::log(x) + b * libm::log1p(-x)
            - libm::log(a);
    libm::exp(log_front) / continued_fraction(x, a, b)
}

/// The denominator 1 + d1/(1 + d2/(1 + ...)).
fn continued_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const TERMS_MAX: u32 = 20_000;
    let guard = |v: f64| if v.abs() < TINY { TINY } else { v };
    let (mut f, mut c, mut d) = (1.0, 1.0, 0.0);
    for i in 1..=TERMS_MAX {
        let m = f64::from(i / 2);
        let term = if i % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / guard(1.0 + term * d);
        c = guard(1.0 + term / c);
        let step = c * d;
        f *= step;
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum of the probabilities, each by its recurrence.
    fn at_least_by_sum(k: u64, n: u64, p: f64) -> f64 {
        let choose = |i: u64| (1..=i).fold(1.0, |c, j| c * (n - i + j) as f64 / j as f64);
        (k..=n).map(|i| choose(i) * p.powi(i as i32) * (1.0 - p).powi((n - i) as i32)).sum()
    }

    #[test]
    fn wilson_of_90_in_100() {
        let i = wilson(90, 100, Z95).unwrap();
        assert!((i.low - 0.825_632).abs() < 1e-5 && (i.high - 0.944_777).abs() < 1e-5, "{i:?}");
        assert_eq!(wilson(0, 0, Z95), None);
        assert_eq!(wilson(2, 1, Z95), None);
    }

    #[test]
    fn clopper_pearson_of_known_cases() {
        let i = clopper_pearson(0, 10, 0.95).unwrap();
        assert_eq!(i.low, 0.0);
        assert!((i.high - (1.0 - 0.025f64.powf(0.1))).abs() < 1e-12);
        let i = clopper_pearson(90, 100, 0.95).unwrap();
        assert!((i.low - 0.823_777).abs() < 1e-5 && (i.high - 0.950_995).abs() < 1e-5, "{i:?}");
        assert_eq!(clopper_pearson(1, 0, 0.95), None);
        assert_eq!(clopper_pearson(1, 2, 1.0), None);
    }

    #[test]
    fn counts_that_reject_a_lower_rate_at_five_percent() {
        for (target, needed) in [(0.90, 96), (0.85, 92), (0.70, 78)] {
            assert!(at_least(needed, 100, target) <= 0.05);
            assert!(at_least(needed - 1, 100, target) > 0.05);
        }
    }

    #[test]
    fn large_counts_stay_in_bounds() {
        let i = clopper_pearson(700_000, 1_000_000, 0.95).unwrap();
        assert!((i.low - 0.699).abs() < 1e-3 && (i.high - 0.701).abs() < 1e-3, "{i:?}");
    }

    proptest! {
        #[test]
        fn tail_equals_the_sum(n in 1u64..40, a in 0u64..41, p in 0.01f64..0.99) {
            let k = a.min(n);
            prop_assert!((at_least(k, n, p) - at_least_by_sum(k, n, p)).abs() < 1e-9);
        }

        #[test]
        fn intervals_hold_the_rate_and_the_exact_one_covers(n in 1u64..40, a in 0u64..41) {
            let k = a.min(n);
            let rate = k as f64 / n as f64;
            for i in [wilson(k, n, Z95).unwrap(), clopper_pearson(k, n, 0.95).unwrap()] {
                prop_assert!(i.low <= rate + 1e-12 && rate <= i.high + 1e-12);
            }
            let exact = clopper_pearson(k, n, 0.95).unwrap();
            if k > 0 {
                prop_assert!((at_least_by_sum(k, n, exact.low) - 0.025).abs() < 1e-9);
            }
            if k < n {
                prop_assert!((1.0 - at_least_by_sum(k + 1, n, exact.high) - 0.025).abs() < 1e-9);
            }
        }
    }
}
