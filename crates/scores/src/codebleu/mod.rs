//! CodeBLEU (Ren et al. 2020) for Rust, twice.
//!
//! [`compat`] reproduces the Python package `codebleu` 0.7.0 with its faults, for comparison with published numbers.
//! [`strict`] is what the paper describes, made for Rust: its data-flow term looks into function bodies and macros, and is
//! left out where the reference has no data flow instead of counting as a full match.

mod compat;
mod flow;
mod reference_flow;
mod strict;
mod tree;

pub use compat::{compat, compat_corpus};
pub use strict::strict;

/// The score and its terms, each in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodeBleu {
    pub score: f64,
    pub ngram: f64,
    pub weighted_ngram: f64,
    pub syntax: f64,
    /// `None` when the reference has no data flow. `strict` then averages the other three; `compat` counts 1, and the
    /// Python package prints 0.
    pub dataflow: Option<f64>,
}
