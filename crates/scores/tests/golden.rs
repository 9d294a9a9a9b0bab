//! The scores against sacrebleu 2.6.0 and Python codebleu 0.7.0.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use scores::bleu::{corpus_bleu, sentence_bleu};
use scores::codebleu::{CodeBleu, compat, compat_corpus};
use scores::tokens::Tokenizer;
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/golden/metrics/bleu_codebleu.json")).unwrap()
}

fn near(what: &str, got: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= tolerance, "{what}: got {got}, the reference says {expected}");
}

fn check(got: &CodeBleu, expected: &Value) {
    near("ngram", got.ngram, &expected["ngram_match_score"], 1e-6);
    near("weighted ngram", got.weighted_ngram, &expected["weighted_ngram_match_score"], 1e-6);
    near("codebleu", got.score, &expected["codebleu"], 1e-6);
    near("syntax", got.syntax, &expected["syntax_match_score"], 1e-6);
    near("data flow", got.dataflow.unwrap_or(0.0), &expected["dataflow_match_score"], 1e-6);
}

fn pairs(golden: &Value) -> Vec<(&str, &str)> {
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    cases.iter().map(|c| (c["prediction"].as_str().unwrap(), c["reference"].as_str().unwrap())).collect()
}

#[test]
fn bleu_equals_sacrebleu() {
    let golden = golden();
    let pairs = pairs(&golden);
    for (case, (candidate, reference)) in golden["cases"].as_array().unwrap().iter().zip(&pairs) {
        let got = sentence_bleu(candidate, reference, Tokenizer::V13a);
        near(candidate, got, &case["sacrebleu_bleu4_sentence_exp"], 1e-6);
    }
    near("corpus", corpus_bleu(pairs, Tokenizer::V13a), &golden["corpus"]["sacrebleu_bleu4"], 1e-6);
}

#[test]
fn compat_codebleu_equals_the_python_package() {
    let golden = golden();
    let pairs = pairs(&golden);
    for (case, (candidate, reference)) in golden["cases"].as_array().unwrap().iter().zip(&pairs) {
        check(&compat(candidate, reference), &case["codebleu"]);
    }
    check(&compat_corpus(pairs), &golden["corpus"]["codebleu"]);
}

/// Made-up pairs, many of them broken; see `data/make_pairs.py`.
#[test]
fn a_couple_of_hundred_pairs_equal_both_packages() {
    let pairs: Value = serde_json::from_str(include_str!("data/pairs.json")).unwrap();
    let cases = pairs["cases"].as_array().unwrap();
    assert!(cases.len() >= 200);
    let text = |case: &'_ Value, name: &str| case[name].as_str().unwrap().to_owned();
    for case in cases {
        let (candidate, reference) = (text(case, "candidate"), text(case, "reference"));
        let sentence = |tokenizer| sentence_bleu(&candidate, &reference, tokenizer);
        near(&candidate, sentence(Tokenizer::V13a), &case["bleu_sentence_13a"], 1e-6);
        near(&candidate, sentence(Tokenizer::Whitespace), &case["bleu_sentence_none"], 1e-6);
        let corpus = corpus_bleu([(candidate.as_str(), reference.as_str())], Tokenizer::V13a);
        near(&candidate, corpus, &case["bleu_corpus_13a"], 1e-6);
        check(&compat(&candidate, &reference), case);
    }
    let texts: Vec<(String, String)> =
        cases.iter().map(|c| (text(c, "candidate"), text(c, "reference"))).collect();
    let all = texts.iter().map(|(c, r)| (c.as_str(), r.as_str()));
    near("corpus", corpus_bleu(all, Tokenizer::V13a), &pairs["corpus"]["bleu_corpus_13a"], 1e-6);
}
