//! pass@k.

/// Unbiased pass@k of Chen et al. 2021 ("Evaluating Large Language Models Trained on Code"), equation 1: the probability
/// that at least one of `k` samples drawn without replacement from `n` is among the `correct` ones.
///
/// `None` when `k` is 0 or exceeds `n`, or `correct` exceeds `n`.
pub fn pass_at_k(n: u64, correct: u64, k: u64) -> Option<f64> {
    if k == 0 || k > n || correct > n {
        return None;
    }
    if n - correct < k {
        return Some(1.0);
    }
    let all_wrong = (n - correct + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>();
    Some(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counts the subsets of size `k` that hold one of the first `correct` samples.
    fn brute_force(n: u64, correct: u64, k: u64) -> f64 {
        let sets = (0u32..1 << n).filter(|s| u64::from(s.count_ones()) == k);
        let (mut good, mut all) = (0u64, 0u64);
        for set in sets {
            all += 1;
            good += u64::from(set & ((1 << correct) - 1) != 0);
        }
        good as f64 / all as f64
    }

    #[test]
    fn what_can_not_be_asked_is_none() {
        assert_eq!(pass_at_k(3, 1, 0), None);
        assert_eq!(pass_at_k(3, 1, 4), None);
        assert_eq!(pass_at_k(3, 4, 1), None);
    }

    proptest! {
        #[test]
        fn equals_counting_subsets(n in 1u64..11, a in 0u64..11, b in 1u64..11) {
            let (correct, k) = (a.min(n), b.min(n));
            let got = pass_at_k(n, correct, k).unwrap();
            prop_assert!((got - brute_force(n, correct, k)).abs() < 1e-12);
        }
    }
}
