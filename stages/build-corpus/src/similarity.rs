//! When two functions are the same, nearly the same, or share a run of words.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use record::corpus::CorpusRow;
use sha2::{Digest, Sha256};
use subject::extract::lex::normalized;

/// Jaccard similarity of token 5-grams from which two functions count as near duplicates.
pub const NEAR: f64 = 0.8;
const GRAM: usize = 5;
const HASHES: usize = 128;
/// Bands of 4 hashes: a pair at Jaccard .8 shares a band with probability 1 - (1 - .8^4)^32 > .9999999.
const BAND: usize = 4;
/// Words of a run that betrays a copy.
const RUN: usize = 13;

/// What of a row is compared.
#[derive(Debug, Clone)]
pub struct Print {
    /// Of the comment-free tokens, identifiers renamed in order of appearance.
    pub shape: [u8; 32],
    grams: BTreeSet<u64>,
    /// 5-grams with every name taken out.
    nameless: BTreeSet<u64>,
    /// Shape of the function without visibility and attributes, out of the `impl` around it.
    bare: BTreeSet<[u8; 32]>,
    /// The same of the functions in the context.
    helpers: BTreeSet<[u8; 32]>,
    runs: BTreeSet<u64>,
    /// Runs of the context.
    helper_runs: BTreeSet<u64>,
}

impl Print {
    /// Of the function and its context; the runs of its tests too.
    pub fn of(row: &CorpusRow) -> Self {
        let tokens = normalized(&row.function_code).unwrap_or_default();
        let tests = [Some(&row.unit_tests), row.property_tests.as_ref()];
        let mut runs = runs_of(&row.function_code);
        for tests in tests.into_iter().flatten() {
            runs.extend(runs_of(tests));
        }
        let nameless: Vec<&str> = tokens.iter().map(|t| if is_name(t) { "name" } else { t }).collect();
        Self {
            shape: shape(&tokens),
            grams: grams_of(&tokens),
            nameless: grams_of(&nameless),
            bare: functions_in(&row.function_code).into_iter().collect(),
            helpers: row.context.items.iter().flat_map(|item| functions_in(item)).collect(),
            runs,
            helper_runs: row.context.items.iter().flat_map(|item| runs_of(item)).collect(),
        }
    }

    /// Jaccard similarity of the 5-gram sets.
    pub fn jaccard(&self, other: &Self) -> f64 {
        share(&self.grams, &other.grams)
    }

    /// The same with every name taken out: copies that were renamed and changed a little are near.
    pub fn nameless_jaccard(&self, other: &Self) -> f64 {
        share(&self.nameless, &other.nameless)
    }

    /// Whether `other`, or a function in its context, is this one but for names and layout.
    pub fn is_repeated_in(&self, other: &Self) -> bool {
        self.shape == other.shape
            || !self.bare.is_disjoint(&other.bare)
            || !self.bare.is_disjoint(&other.helpers)
    }

    /// Whether a run of 13 words of this function or its tests occurs in the other row, its context included.
    pub fn shares_run(&self, other: &Self) -> bool {
        !self.runs.is_disjoint(&other.runs) || !self.runs.is_disjoint(&other.helper_runs)
    }

    /// Whether the two are nearly the same function, as they stand or with names taken out.
    fn is_near(&self, other: &Self) -> bool {
        self.jaccard(other) >= NEAR || self.nameless_jaccard(other) >= NEAR
    }
}

/// Minimum of each of 128 hash functions over the 5-grams.
fn minhash(grams: &BTreeSet<u64>) -> Vec<u64> {
    let least = |i: u64| grams.iter().map(|g| mix(g ^ mix(i + 1))).min().unwrap_or(u64::MAX);
    (0..HASHES as u64).map(least).collect()
}

/// Near duplicates among many, by banded MinHash; what it proposes is checked exactly.
#[derive(Debug, Default)]
pub struct Index {
    bands: BTreeMap<(usize, u64), Vec<usize>>,
    prints: Vec<Print>,
}

impl Index {
    pub fn add(&mut self, print: Print) {
        let id = self.prints.len();
        for key in bands(&print) {
            self.bands.entry(key).or_default().push(id);
        }
        self.prints.push(print);
    }

    /// Whether something at [`NEAR`] or more was added before, with names or with names taken out.
    pub fn has_near(&self, print: &Print) -> bool {
        let ids: BTreeSet<usize> =
            bands(print).iter().filter_map(|k| self.bands.get(k)).flatten().copied().collect();
        ids.into_iter().any(|id| self.prints[id].is_near(print))
    }
}

/// Of the 5-grams with names, then of those without.
fn bands(print: &Print) -> Vec<(usize, u64)> {
    let hashes = [minhash(&print.grams), minhash(&print.nameless)].concat();
    hashes.chunks(BAND).enumerate().map(|(i, band)| (i, band.iter().fold(0, |acc, h| mix(acc ^ h)))).collect()
}

fn share(a: &BTreeSet<u64>, b: &BTreeSet<u64>) -> f64 {
    let both = a.intersection(b).count();
    let either = a.len() + b.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

fn grams_of<T: AsRef<str>>(tokens: &[T]) -> BTreeSet<u64> {
    if tokens.len() < GRAM {
        BTreeSet::from([hash(tokens)])
    } else {
        tokens.windows(GRAM).map(hash).collect()
    }
}

/// Shapes of the functions that stand in the code, each without visibility and attributes.
fn functions_in(code: &str) -> Vec<[u8; 32]> {
    let Ok(file) = syn::parse_file(code) else { return Vec::new() };
    let of = |signature: &syn::Signature, body: &syn::Block| {
        let text = format!("{} {}", signature.to_token_stream(), body.to_token_stream());
        shape(&normalized(&text).unwrap_or_default())
    };
    let mut found = Vec::new();
    for item in &file.items {
        match item {
            syn::Item::Fn(function) => found.push(of(&function.sig, &function.block)),
            syn::Item::Impl(block) => {
                for member in &block.items {
                    if let syn::ImplItem::Fn(method) = member {
                        found.push(of(&method.sig, &method.block));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_') && !is_keyword(token)
}

fn shape(tokens: &[String]) -> [u8; 32] {
    let mut names = BTreeMap::new();
    let mut hasher = Sha256::new();
    for token in tokens {
        if is_name(token) {
            let next = names.len();
            let number = *names.entry(token.as_str()).or_insert(next);
            hasher.update(format!("name{number}"));
        } else {
            hasher.update(token);
        }
        hasher.update([0]);
    }
    hasher.finalize().into()
}

fn is_keyword(word: &str) -> bool {
    syn::parse_str::<syn::Ident>(word).is_err()
}

/// Runs of 13 words: identifiers, keywords and numbers; punctuation and layout do not count.
fn runs_of(code: &str) -> BTreeSet<u64> {
    let words: Vec<&str> =
        code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    words.windows(RUN).map(hash).collect()
}

fn hash<T: AsRef<str>>(parts: &[T]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_ref());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}

/// The finaliser of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::row;

    const LONG: &str = "fn f(a: &[u32]) -> u32 { let mut t = 0; for x in a { if *x > 3 { t += *x; } else { t -= 1; } } t * 2 }";

    fn print(code: &str) -> Print {
        Print::of(&row("a", code, ""))
    }

    #[test]
    fn renamed_copies_have_the_same_shape() {
        assert_eq!(print("fn f(a: u8) -> u8 { a + 1 }").shape, print("fn g(b: u8) -> u8 {\n b + 1 }").shape);
        assert_ne!(print("fn f(a: u8) -> u8 { a + 1 }").shape, print("fn f(a: u8) -> u8 { a - 1 }").shape);
        assert_ne!(
            print("fn f(a: u8, b: u8) -> u8 { a }").shape,
            print("fn f(a: u8, b: u8) -> u8 { b }").shape
        );
    }

    #[test]
    fn near_copies_are_found_and_others_are_not() {
        let mut index = Index::default();
        index.add(print(LONG));
        assert!(index.has_near(&print(&LONG.replace("t * 2", "t * 3"))));
        assert!(!index.has_near(&print("fn g(s: &str) -> String { s.chars().rev().collect() }")));
        assert!((print(LONG).jaccard(&print(LONG)) - 1.0).abs() < 1e-12);
    }

    /// A renamed copy with another number in it has another shape, and few 5-grams with its names in them.
    #[test]
    fn renamed_and_slightly_changed_copies_are_near() {
        let mut index = Index::default();
        index.add(print(LONG));
        let renamed = "fn g(all: &[u32]) -> u32 { let mut sum = 0; for each in all { if *each > 3 { sum += *each; } else { sum -= 1; } } sum * 3 }";
        let copy = print(renamed);
        assert!(copy.jaccard(&print(LONG)) < NEAR && copy.shape != print(LONG).shape);
        assert!(index.has_near(&copy));
    }

    #[test]
    fn runs_of_words_are_found_in_tests_too() {
        let text = "let a = b(c, d); let e = f(g, h); let i = j(k, l);";
        let a = Print::of(&row("a", "fn x() {}", &format!("fn t() {{ {text} }}")));
        let b = Print::of(&row("b", &format!("fn y() {{ {text} }}"), ""));
        assert!(a.shares_run(&b));
        assert!(!a.shares_run(&print(LONG)));
    }
}
