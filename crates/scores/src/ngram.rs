//! N-gram counts of a pair of token sequences.

use std::collections::BTreeMap;

/// Highest order of n-grams: the 4 of BLEU-4.
pub(crate) const ORDER_MAX: usize = 4;

pub(crate) type Counts<'t, T> = BTreeMap<&'t [T], u64>;

pub(crate) fn counts<T: Ord>(tokens: &[T], order: usize) -> Counts<'_, T> {
    let mut counts = Counts::new();
    for gram in tokens.windows(order) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// What BLEU needs of one pair, or of many pairs added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Matches {
    /// Per order: n-grams of the candidate, each at most as often as in the reference.
    pub(crate) matched: [u64; ORDER_MAX],
    /// Per order: n-grams of the candidate.
    pub(crate) total: [u64; ORDER_MAX],
    pub(crate) candidate_len: u64,
    pub(crate) reference_len: u64,
}

impl Matches {
    pub(crate) fn of<T: Ord>(candidate: &[T], reference: &[T]) -> Self {
        let mut matches = Self {
            candidate_len: candidate.len() as u64,
            reference_len: reference.len() as u64,
            ..Self::default()
        };
        for order in 1..=ORDER_MAX {
            let expected = counts(reference, order);
            for (gram, n) in counts(candidate, order) {
                matches.total[order - 1] += n;
                matches.matched[order - 1] += n.min(expected.get(gram).copied().unwrap_or(0));
            }
        }
        matches
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for order in 0..ORDER_MAX {
            self.matched[order] += other.matched[order];
            self.total[order] += other.total[order];
        }
        self.candidate_len += other.candidate_len;
        self.reference_len += other.reference_len;
    }
}
