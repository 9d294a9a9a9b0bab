//! CodeBLEU as the Python package `codebleu` 0.7.0 computes it for Rust (with tree-sitter-rust 0.21.2).
//!
//! Known faults, kept on purpose:
//! - tokens are split at white space;
//! - the weighted term is a recall that takes 2 for the reference's length, so it punishes no short candidate;
//! - an order without matches is smoothed, never 0;
//! - syntax is a recall that counts one candidate subtree any number of times;
//! - comments are cut with a pattern that takes lifetimes for quotes;
//! - data flow stops at the signatures of functions, and "none found" then counts as a full match.
//!
//! Two of its values can't be reproduced. Where it merges names through a Python set, its result changes with the
//! interpreter's hash seed; here names keep their order of appearance. Where it would run out of stack or of patience
//! (trees deeper than 500, loops nested so that two million nodes are visited), it is taken to find no data flow.

use crate::codebleu::CodeBleu;
use crate::codebleu::reference_flow::{self, Edge};
use crate::codebleu::tree::{Shapes, Tree};
use crate::ngram::{self, Matches, ORDER_MAX};
use crate::tokens::{is_space, words};

/// Its keyword file for Rust: weight 1, any other token 0.2. Fragment names of macros (`expr`, `tt`) are in it, `Self` is not.
const KEYWORDS: &[&str] = &[
    "as",
    "async",
    "await",
    "block",
    "bool",
    "break",
    "char",
    "const",
    "continue",
    "crate",
    "default",
    "dyn",
    "else",
    "enum",
    "expr",
    "extern",
    "f32",
    "f64",
    "false",
    "fn",
    "for",
    "i128",
    "i16",
    "i32",
    "i64",
    "i8",
    "ident",
    "if",
    "impl",
    "in",
    "isize",
    "item",
    "let",
    "lifetime",
    "literal",
    "loop",
    "macro_rules!",
    "match",
    "meta",
    "mod",
    "move",
    "mut",
    "pat",
    "path",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "stmt",
    "str",
    "struct",
    "super",
    "trait",
    "true",
    "tt",
    "ty",
    "type",
    "u128",
    "u16",
    "u32",
    "u64",
    "u8",
    "union",
    "unsafe",
    "use",
    "usize",
    "vis",
    "where",
    "while",
    "yield",
];
const OTHER_WEIGHT: f64 = 0.2;
const SMOOTHING: f64 = 0.1;
/// In the weighted term it takes the length of the pair (tokens, weights) for the reference's.
const PAIR_LEN: f64 = 2.0;

/// CodeBLEU of one pair.
pub fn compat(candidate: &str, reference: &str) -> CodeBleu {
    compat_corpus([(candidate, reference)])
}

/// CodeBLEU of a corpus of (candidate, reference) pairs, one reference each.
pub fn compat_corpus<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> CodeBleu {
    let (mut plain, mut weighted) = (Sums::default(), Sums::default());
    let (mut syntax, mut flow) = ((0, 0), (0, 0));
    for (candidate, reference) in pairs {
        let (candidate, reference) = (candidate.trim_matches(is_space), reference.trim_matches(is_space));
        let c: Vec<&str> = words(candidate).collect();
        let r: Vec<&str> = words(reference).collect();
        plain.add_precision(&c, &r);
        weighted.add_recall(&c, &r);
        let (candidate, reference) = (without_comments(candidate), without_comments(reference));
        let (c, r) = (Tree::parse(&candidate), Tree::parse(&reference));
        let (Some(c), Some(r)) = (c, r) else { continue };
        add(&mut syntax, syntax_matches(&c, &candidate, &r, &reference));
        add(
            &mut flow,
            flow_matches(reference_flow::edges(&c, &candidate), reference_flow::edges(&r, &reference)),
        );
    }
    let share = |(matched, total): (usize, usize)| matched as f64 / total.max(1) as f64;
    let dataflow = (flow.1 > 0).then(|| share(flow));
    let (ngram, weighted_ngram, syntax) = (plain.score(), weighted.score(), share(syntax));
    // `dataflow_score or 1`: no match at all counts as a full one, too.
    let counted = dataflow.filter(|&d| d > 0.0).unwrap_or(1.0);
    let score = 0.25 * ngram + 0.25 * weighted_ngram + 0.25 * syntax + 0.25 * counted;
    CodeBleu { score, ngram, weighted_ngram, syntax, dataflow }
}

fn add(sum: &mut (usize, usize), more: (usize, usize)) {
    sum.0 += more.0;
    sum.1 += more.1;
}

/// Numerators and denominators per order, and the two lengths.
#[derive(Debug, Default)]
struct Sums {
    numerators: [f64; ORDER_MAX],
    denominators: [f64; ORDER_MAX],
    candidate_len: f64,
    reference_len: f64,
}

impl Sums {
    fn add_precision(&mut self, candidate: &[&str], reference: &[&str]) {
        let matches = Matches::of(candidate, reference);
        for i in 0..ORDER_MAX {
            self.numerators[i] += matches.matched[i] as f64;
            self.denominators[i] += matches.total[i].max(1) as f64;
        }
        self.candidate_len += candidate.len() as f64;
        self.reference_len += reference.len() as f64;
    }

    fn add_recall(&mut self, candidate: &[&str], reference: &[&str]) {
        for order in 1..=ORDER_MAX {
            let found = ngram::counts(candidate, order);
            let (mut matched, mut total) = (0.0, 0.0);
            for (gram, n) in ngram::counts(reference, order) {
                let weight = if order == 1 { weight(gram[0]) } else { 1.0 };
                matched += weight * n.min(found.get(gram).copied().unwrap_or(0)) as f64;
                total += weight * n as f64;
            }
            self.numerators[order - 1] += matched;
            self.denominators[order - 1] += total.max(1.0);
        }
        self.candidate_len += candidate.len() as f64;
        self.reference_len += PAIR_LEN;
    }

    fn score(&self) -> f64 {
        if self.numerators[0] == 0.0 {
            return 0.0;
        }
        let log = |(&n, &d): (&f64, &f64)| libm::log(if n == 0.0 { SMOOTHING } else { n } / d);
        let mean = self.numerators.iter().zip(&self.denominators).map(log).sum::<f64>() / ORDER_MAX as f64;
        let penalty = if self.candidate_len > self.reference_len {
            1.0
        } else {
            libm::exp(1.0 - self.reference_len / self.candidate_len)
        };
        penalty * libm::exp(mean)
    }
}

fn weight(token: &str) -> f64 {
    if KEYWORDS.contains(&token) { 1.0 } else { OTHER_WEIGHT }
}

fn syntax_matches(
    candidate: &Tree,
    candidate_text: &str,
    reference: &Tree,
    reference_text: &str,
) -> (usize, usize) {
    let mut shapes = Shapes::default();
    let c = shapes.of(candidate, candidate_text);
    let r = shapes.of(reference, reference_text);
    let present: std::collections::BTreeSet<usize> = candidate.subtrees().map(|i| c[i]).collect();
    let matched = reference.subtrees().filter(|&i| present.contains(&r[i])).count();
    (matched, reference.subtrees().count())
}

fn flow_matches(mut candidate: Vec<Edge>, reference: Vec<Edge>) -> (usize, usize) {
    let total = reference.len();
    let mut matched = 0;
    for edge in reference {
        if let Some(i) = candidate.iter().position(|c| *c == edge) {
            candidate.remove(i);
            matched += 1;
        }
    }
    (matched, total)
}

/// Cuts `//` and `/* */` comments, jumping over what stands between quotes of one kind, then drops blank lines.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (length, is_comment) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), true)
        } else if let Some(end) = rest.strip_prefix("/*").and_then(|r| r.find("*/")) {
            (end + 4, true)
        } else if matches!(first, '\'' | '"') {
            (quoted(rest, first).unwrap_or(1), false)
        } else {
            (first.len_utf8(), false)
        };
        out.push_str(if is_comment { " " } else { &rest[..length] });
        at += length;
    }
    let lines: Vec<&str> = out.split('\n').filter(|line| !line.chars().all(is_space)).collect();
    lines.join("\n")
}

/// Length up to the closing quote; `None` when there is none.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        if c == '\\' {
            chars.next()?;
        } else if c == quote {
            return Some(i + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_lifetimes_fool_it() {
        assert_eq!(without_comments("a // x\n\n  /* y\n */ b"), "a  \n    b");
        assert_eq!(without_comments("\"// kept\" // cut"), "\"// kept\"  ");
        assert_eq!(without_comments("&'a str // cut"), "&'a str  ");
        assert_eq!(without_comments("&'a str // 'kept"), "&'a str // 'kept");
    }

    #[test]
    fn garbage_gets_a_quarter_for_free() {
        let got = compat("", "#[test]\nfn ok() { assert!(true); }\n");
        assert_eq!((got.score, got.dataflow), (0.25, None));
    }
}
