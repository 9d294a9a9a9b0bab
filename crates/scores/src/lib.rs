//! Scores and statistics: BLEU, CodeBLEU, pass@k, intervals, bootstrap.
//!
//! Pure maths. Nothing here reads a file, a clock or the environment; everything random takes a seed, sums run in a fixed
//! order, and the transcendental functions come from `libm`, so that the same input gives the same bits on every machine.

pub mod bleu;
pub mod bootstrap;
pub mod codebleu;
pub mod interval;
mod ngram;
mod passk;
pub mod philox;
mod rust_lexer;
mod summary;
pub mod tokens;

pub use interval::Interval;
pub use passk::pass_at_k;
pub use summary::{mean, pearson, quantile};
