//! CodeBLEU after the paper (Ren et al. 2020, section 3), for Rust.
//!
//! - n-gram match: sentence BLEU-4 over Rust tokens, comments stripped;
//! - weighted n-gram match: the same with keywords counting five times as much as other tokens among the unigrams (equation 3);
//! - syntax match: share of the reference's subtrees found in the candidate, one for one; a subtree that holds a syntax
//!   error matches nothing;
//! - data-flow match: share of the reference's edges between variables found in the candidate, one for one.
//!
//! The score is the mean of the four; of the first three where the reference has no data flow.

use std::collections::BTreeMap;

use crate::bleu::bleu;
use crate::codebleu::CodeBleu;
use crate::codebleu::flow;
use crate::codebleu::tree::{Shapes, Tree};
use crate::ngram::Matches;
use crate::rust_lexer::{Kind, is_keyword, lex, without_comments};

const KEYWORD_WEIGHT: u64 = 5;

/// CodeBLEU of one pair.
pub fn strict(candidate: &str, reference: &str) -> CodeBleu {
    let (candidate, reference) = (without_comments(candidate), without_comments(reference));
    let words = |text| lex(text).iter().map(|token| token.text).collect::<Vec<&str>>();
    let matches = Matches::of(&words(&candidate), &words(&reference));
    let ngram = bleu(&matches, true);
    let weighted_ngram = bleu(&weighted(matches, &candidate, &reference), true);
    let (syntax, dataflow) = match (Tree::parse(&candidate), Tree::parse(&reference)) {
        (Some(c), Some(r)) => {
            let edges = (flow::edges(&c, &candidate), flow::edges(&r, &reference));
            let total = edges.1.len();
            (syntax_match(&c, &candidate, &r, &reference), share(edges.0, edges.1, total))
        }
        _ => (0.0, None),
    };
    let terms = [Some(ngram), Some(weighted_ngram), Some(syntax), dataflow];
    let present: Vec<f64> = terms.into_iter().flatten().collect();
    let score = present.iter().sum::<f64>() / present.len() as f64;
    CodeBleu { score, ngram, weighted_ngram, syntax, dataflow }
}

/// The counts with the unigrams weighted.
fn weighted(mut matches: Matches, candidate: &str, reference: &str) -> Matches {
    let (c, r) = (words(candidate), words(reference));
    matches.total[0] = c.iter().map(|((_, weight), n)| weight * n).sum();
    matches.matched[0] = c.iter().map(|(word, n)| word.1 * (*n).min(r.get(word).copied().unwrap_or(0))).sum();
    matches
}

/// (token, weight) -> how often.
fn words(text: &str) -> BTreeMap<(&str, u64), u64> {
    let mut words = BTreeMap::new();
    for token in lex(text) {
        let weight = if token.kind == Kind::Word && is_keyword(token.text) { KEYWORD_WEIGHT } else { 1 };
        *words.entry((token.text, weight)).or_default() += 1;
    }
    words
}

fn syntax_match(candidate: &Tree, candidate_text: &str, reference: &Tree, reference_text: &str) -> f64 {
    let mut shapes = Shapes::default();
    let found = whole_subtrees(candidate, &shapes.of(candidate, candidate_text));
    let expected = whole_subtrees(reference, &shapes.of(reference, reference_text));
    share(found, expected, reference.subtrees().count()).unwrap_or(0.0)
}

/// Shapes of the subtrees that have children and hold no syntax error.
fn whole_subtrees(tree: &Tree, shapes: &[usize]) -> Vec<usize> {
    let mut is_broken = vec![false; tree.nodes.len()];
    for (i, node) in tree.nodes.iter().enumerate().rev() {
        is_broken[i] = node.error || node.missing || node.children.iter().any(|&child| is_broken[child]);
    }
    let whole = tree.subtrees().filter(|&i| !is_broken[i] && !tree.nodes[i].children.is_empty());
    whole.map(|i| shapes[i]).collect()
}

/// How many of the expected values are found, each found value counted once, of `total`. `None` when that is 0.
fn share<T: Ord>(found: Vec<T>, expected: Vec<T>, total: usize) -> Option<f64> {
    let mut left: BTreeMap<T, usize> = BTreeMap::new();
    for value in found {
        *left.entry(value).or_default() += 1;
    }
    let mut matched = 0;
    for value in &expected {
        if let Some(n) = left.get_mut(value).filter(|n| **n > 0) {
            *n -= 1;
            matched += 1;
        }
    }
    (total > 0).then(|| f64::from(matched) / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFERENCE: &str =
        "#[test]\nfn doubles() {\n    let x = 2;\n    let y = double(x);\n    assert_eq!(y, 4);\n}\n";

    #[test]
    fn a_copy_scores_one_whatever_its_comments_and_layout() {
        let copy =
            "#[test] fn doubles() { // why\n let x = 2; let y = /* ! */ double(x); assert_eq!(y, 4); }";
        let got = strict(copy, REFERENCE);
        assert!((got.score - 1.0).abs() < 1e-12, "{got:?}");
        assert_eq!(got.dataflow, Some(1.0));
    }

    #[test]
    fn renamed_variables_keep_syntax_and_data_flow() {
        let renamed = REFERENCE.replace('x', "input").replace('y', "output");
        let got = strict(&renamed, REFERENCE);
        assert_eq!((got.syntax, got.dataflow), (1.0, Some(1.0)));
        assert!(got.ngram < 1.0);
    }

    #[test]
    fn another_flow_is_seen() {
        let other = REFERENCE.replace("double(x)", "double(3)");
        assert!(strict(&other, REFERENCE).dataflow.unwrap() < 1.0);
    }

    #[test]
    fn garbage_and_nothing_score_next_to_nothing() {
        assert_eq!(strict("", REFERENCE).score, 0.0);
        let got = strict("fn t( { garbage", REFERENCE);
        assert!(got.score < 0.05, "{got:?}");
    }

    #[test]
    fn without_data_flow_three_terms_are_averaged() {
        let got = strict("#[test]\nfn a() { assert!(f(1)); }", "#[test]\nfn a() { assert!(f(1)); }");
        assert_eq!(got.dataflow, None);
        assert!((got.score - 1.0).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn scores_stay_in_bounds(
            words in proptest::collection::vec(
                "fn|let|mut|x|y|=|;|\\{|\\}|\\(|\\)|if|else|1|\"s\"|,|::|<|>|&|!|match|=>|\\||for|in|assert", 0..30,
            ),
        ) {
            let text = words.join(" ");
            for got in [strict(&text, REFERENCE), strict(REFERENCE, &text), strict(&text, &text)] {
                for term in [got.score, got.ngram, got.weighted_ngram, got.syntax, got.dataflow.unwrap_or(0.0)] {
                    prop_assert!((0.0..=1.0 + 1e-12).contains(&term), "{got:?}");
                }
            }
        }
    }
}
