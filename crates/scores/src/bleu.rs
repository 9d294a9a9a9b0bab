//! BLEU-4 as sacrebleu 2.6 computes it (Papineni et al. 2002; exponential smoothing as in mteval-v13a).
//!
//! Scores lie in 0..=1. The scorer is equal to sacrebleu's; what is compared depends on the [`Tokenizer`], so a score is
//! worth nothing without its [`signature`].

use crate::ngram::{Matches, ORDER_MAX};
use crate::tokens::Tokenizer;

/// sacrebleu's stand-in for the logarithm of zero.
const LOG_OF_ZERO: f64 = -9_999_999_999.0;

/// What sacrebleu would print for the same settings, one reference each.
pub fn signature(tokenizer: Tokenizer, effective_order: bool) -> String {
    let effective = if effective_order { "yes" } else { "no" };
    format!("nrefs:1|case:mixed|eff:{effective}|tok:{}|smooth:exp|version:2.6.0", tokenizer.signature())
}

/// BLEU of one pair, with the order limited to the longest n-gram of the candidate ("effective order").
pub fn sentence_bleu(candidate: &str, reference: &str, tokenizer: Tokenizer) -> f64 {
    let matches = Matches::of(&tokenizer.tokens(candidate), &tokenizer.tokens(reference));
    bleu(&matches, true)
}

/// BLEU of a corpus of (candidate, reference) pairs: counts are added up over the pairs first.
pub fn corpus_bleu<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>, tokenizer: Tokenizer) -> f64 {
    let mut all = Matches::default();
    for (candidate, reference) in pairs {
        all.add(&Matches::of(&tokenizer.tokens(candidate), &tokenizer.tokens(reference)));
    }
    bleu(&all, false)
}

pub(crate) fn bleu(matches: &Matches, effective_order: bool) -> f64 {
    if matches.matched.iter().all(|&n| n == 0) {
        return 0.0;
    }
    let mut logs = [LOG_OF_ZERO; ORDER_MAX];
    let mut order = ORDER_MAX;
    let mut smoothing = 1.0;
    for (i, log) in logs.iter_mut().enumerate() {
        let total = matches.total[i] as f64;
        if matches.total[i] == 0 {
            break;
        }
        if effective_order {
            order = i + 1;
        }
        *log = if matches.matched[i] == 0 {
            smoothing *= 2.0;
            libm::log(1.0 / (smoothing * total))
        } else {
            libm::log(matches.matched[i] as f64 / total)
        };
    }
    let mean = logs[..order].iter().sum::<f64>() / order as f64;
    brevity_penalty(matches) * libm::exp(mean)
}

fn brevity_penalty(matches: &Matches) -> f64 {
    let (candidate, reference) = (matches.candidate_len as f64, matches.reference_len as f64);
    if matches.candidate_len >= matches.reference_len {
        1.0
    } else if matches.candidate_len == 0 {
        0.0
    } else {
        libm::exp(1.0 - reference / candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_tokens_use_three_orders_alone_and_none_in_a_corpus() {
        let pair = ("assert ! ok", "assert ! ok ( x )");
        let sentence = sentence_bleu(pair.0, pair.1, Tokenizer::Whitespace);
        assert!((sentence - libm::exp(1.0 - 6.0 / 3.0)).abs() < 1e-12);
        assert_eq!(corpus_bleu([pair], Tokenizer::Whitespace), 0.0);
    }

    #[test]
    fn signature_names_the_tokenizer() {
        assert_eq!(
            signature(Tokenizer::Rust, false),
            "nrefs:1|case:mixed|eff:no|tok:rust-lexer.1|smooth:exp|version:2.6.0"
        );
    }

    /// The definition, written out: clipped precisions by looking for every n-gram in turn.
    fn brute_force(candidate: &[&str], reference: &[&str]) -> f64 {
        let mut logs = Vec::new();
        let (mut hits, mut halvings) = (0, 0);
        for order in 1..=4 {
            let mut left: Vec<&[&str]> = reference.windows(order).collect();
            let all = candidate.windows(order).count();
            let matched = candidate
                .windows(order)
                .filter(|gram| match left.iter().position(|l| l == gram) {
                    Some(i) => {
                        left.remove(i);
                        true
                    }
                    None => false,
                })
                .count();
            hits += matched;
            if all > 0 {
                halvings += i32::from(matched == 0);
                let p = if matched == 0 { 0.5f64.powi(halvings) } else { matched as f64 };
                logs.push((p / all as f64).ln());
            }
        }
        if hits == 0 {
            return 0.0;
        }
        let ratio = reference.len() as f64 / candidate.len() as f64;
        (1.0 - ratio).min(0.0).exp() * (logs.iter().sum::<f64>() / logs.len() as f64).exp()
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            candidate in proptest::collection::vec("[ab(]", 0..12),
            reference in proptest::collection::vec("[ab(]", 0..12),
        ) {
            let got = sentence_bleu(&candidate.join(" "), &reference.join(" "), Tokenizer::Whitespace);
            let c: Vec<&str> = candidate.iter().map(String::as_str).collect();
            let r: Vec<&str> = reference.iter().map(String::as_str).collect();
            prop_assert!((got - brute_force(&c, &r)).abs() < 1e-12);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&got));
        }
    }
}
