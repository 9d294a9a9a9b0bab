//! Keeps the holdout out of training.

use std::collections::BTreeMap;

use record::corpus::{CorpusRow, Leakage, Neighbour};

use crate::similarity::{NEAR, Print};

/// How a training row betrays a holdout row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    Exact,
    Normalized,
    Ngram13,
    Near,
}

impl Leak {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Exact => "leak_exact",
            Self::Normalized => "leak_normalized",
            Self::Ngram13 => "leak_ngram13",
            Self::Near => "leak_near",
        }
    }
}

/// Jaccard similarity of token 5-grams above which a row is too near to one of the holdout; with names taken out, [`NEAR`].
const NEAR_WITH_NAMES: f64 = 0.5;

/// The rows that must not be met in training.
#[derive(Debug)]
pub struct Guard {
    rows: Vec<(String, String, Print)>,
}

impl Guard {
    pub fn new<'r>(holdout: impl IntoIterator<Item = &'r CorpusRow>) -> Self {
        let rows = holdout.into_iter().map(|r| (r.id.clone(), r.metadata.sha256.clone(), Print::of(r)));
        Self { rows: rows.collect() }
    }

    /// How the row leaks, if it does: the same text, the same tokens but for names and layout (in its context too), a run
    /// of 13 words in common, in function, tests or context, or a function that is nearly the same.
    pub fn leak(&self, row: &CorpusRow, print: &Print) -> Option<Leak> {
        self.rows.iter().find_map(|(_, sha256, held)| {
            if *sha256 == row.metadata.sha256 {
                Some(Leak::Exact)
            } else if held.is_repeated_in(print) {
                Some(Leak::Normalized)
            } else if held.shares_run(print) {
                Some(Leak::Ngram13)
            } else {
                let is_near = held.jaccard(print) > NEAR_WITH_NAMES || held.nameless_jaccard(print) >= NEAR;
                is_near.then_some(Leak::Near)
            }
        })
    }

    /// Counts what still overlaps, and names the training row nearest to each holdout row.
    pub fn report(&self, train: &[CorpusRow]) -> Leakage {
        let mut leakage = Leakage::default();
        let prints: Vec<(&CorpusRow, Print)> = train.iter().map(|r| (r, Print::of(r))).collect();
        let mut nearest = BTreeMap::new();
        for (row, print) in &prints {
            match self.leak(row, print) {
                Some(Leak::Exact) => leakage.exact += 1,
                Some(Leak::Normalized) => leakage.normalized += 1,
                Some(Leak::Ngram13) => leakage.ngram13 += 1,
                Some(Leak::Near) => leakage.near += 1,
                None => {}
            }
            for (id, _, held) in &self.rows {
                let jaccard = held.jaccard(print);
                let best = nearest.entry(id).or_insert((jaccard, &row.id));
                if jaccard > best.0 {
                    *best = (jaccard, &row.id);
                }
            }
        }
        let neighbours = nearest.into_iter().map(|(id, (jaccard, train_id))| Neighbour {
            holdout_id: id.clone(),
            train_id: train_id.clone(),
            jaccard,
        });
        leakage.nearest = neighbours.collect();
        leakage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    const HELD: &str =
        "fn held(items: &[u32]) -> u32 { let mut total = 0; for item in items { total += item * 2; } total }";

    fn leak(code: &str, tests: &str) -> Option<Leak> {
        let guard = Guard::new([&row("h", HELD, "")]);
        let candidate = row("t", code, tests);
        guard.leak(&candidate, &Print::of(&candidate))
    }

    #[test]
    fn copies_are_seen_through_layout_and_names() {
        assert_eq!(leak(HELD, ""), Some(Leak::Exact));
        assert_eq!(leak(&HELD.replace("; ", ";\n"), ""), Some(Leak::Normalized));
        assert_eq!(leak(&HELD.replace("total", "sum").replace("held", "x"), ""), Some(Leak::Normalized));
        assert_eq!(leak("fn other() {}", &format!("fn copy() {{ {HELD} }}")), Some(Leak::Ngram13));
        assert_eq!(leak("fn other(s: &str) -> usize { s.len() }", ""), None);
    }

    #[test]
    fn a_copy_that_was_renamed_and_changed_a_little_is_near() {
        let long = "fn held(items: &[u32], limit: u32) -> Option<u32> { let mut total = 0; for item in items { if *item > limit { return None; } total += item * 2; } let mean = total / items.len() as u32; if mean < limit { Some(mean) } else { Some(limit - mean % 7) } }";
        let guard = Guard::new([&row("h", long, "")]);
        let renamed =
            long.replace("total", "sum").replace("limit", "most").replace("item", "n").replace("mean", "m");
        let changed = row("t", &renamed.replace("* 2", "* 3").replace("held", "x"), "");
        assert_eq!(guard.leak(&changed, &Print::of(&changed)), Some(Leak::Near));
        let inserted = long.replace("let mut total = 0; ", "let mut total = 0; assert!(limit > 1); ");
        let inserted = row("t", &inserted, "");
        assert!(guard.leak(&inserted, &Print::of(&inserted)).is_some());
    }

    #[test]
    fn a_copy_among_the_helpers_of_another_function_is_seen() {
        let guard = Guard::new([&row("h", HELD, "")]);
        let copy = HELD.replace("total", "sum").replace("held", "helper");
        for item in [copy.clone(), format!("impl Thing {{ {copy} }}")] {
            let mut candidate = row("t", "fn caller(v: &[u32]) -> u32 { helper(v) }", "");
            candidate.context.items = vec!["struct Thing;".to_owned(), item];
            assert_eq!(guard.leak(&candidate, &Print::of(&candidate)), Some(Leak::Normalized));
            candidate.context.items.pop();
            assert_eq!(guard.leak(&candidate, &Print::of(&candidate)), None);
        }
    }

    #[test]
    fn the_report_counts_and_names_the_nearest() {
        let guard = Guard::new([&row("h", HELD, "")]);
        let near = row("near", &HELD.replace("* 2", "* 3 - 1"), "");
        let far = row("far", "fn f(s: &str) -> usize { s.len() }", "");
        let report = guard.report(&[far.clone(), near]);
        assert_eq!(report.nearest[0].train_id, "near");
        assert_eq!(guard.report(&[far]).exact, 0);
        assert_eq!(guard.report(&[row("same", HELD, "")]).exact, 1);
    }
}
