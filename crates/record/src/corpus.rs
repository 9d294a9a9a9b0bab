//! The corpus: rows of `{train,validation,test,holdout,stress}.jsonl` and its manifest.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const CORPUS_SCHEMA_VERSION: u32 = 1;

/// A function and its tests. Stands alone: `imports`, `items`, `function_code` and the tests compile as one crate with
/// `rustc` and the prebuilt libraries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusRow {
    pub id: String,
    /// A free function, or an `impl` block that holds one method.
    pub function_code: String,
    /// Items that stand inside `mod tests { use super::*; ... }`: use declarations, helpers, `#[test]` functions.
    pub unit_tests: String,
    /// The same for property tests: `proptest! { ... }` blocks, inside `mod property_tests { use super::*; use proptest::prelude::*; ... }`.
    pub property_tests: Option<String>,
    pub context: RowContext,
    pub metadata: RowMetadata,
}

/// What else the function needs to compile on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowContext {
    /// Whole `use ...;` declarations.
    pub imports: Vec<String>,
    /// Whole items: types, constants, helper functions, impl blocks, macros.
    pub items: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowMetadata {
    #[serde(rename = "crate")]
    pub crate_name: String,
    pub version: String,
    /// Path of the source file inside the crate.
    pub path: String,
    /// Path of the item inside the crate (`text::pad_left`, `Stack::push`).
    pub item: String,
    /// First and last line in `path`, from 1.
    pub lines: [u32; 2],
    /// SPDX expression.
    pub license: String,
    /// Cyclomatic.
    pub complexity: u32,
    pub has_generics: bool,
    pub has_lifetimes: bool,
    pub is_async: bool,
    pub is_unsafe: bool,
    pub uses_macros: bool,
    pub returns_result: bool,
    pub source_class: SourceClass,
    /// Where the property tests come from: `property` (the crate's own), `curated`, or `synthesized` (made from the
    /// function's signature or out of its unit tests, and kept because they hold on a run and kill a mutant). `None`: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub property_class: Option<SourceClass>,
    pub oracle: Oracle,
    /// Why these tests are believed to be tests of this function; the smaller, the surer.
    pub link_tier: LinkTier,
    /// Mutants of the function that the tests kill; the link proved by execution.
    pub mutants_killed: u32,
    /// Holdout and stress rows: `std`, `async`, `generics`, `result`, `unsafe`, `macros`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stratum: Option<String>,
    /// Of `function_code`, hexadecimal: the function's identity in every other file.
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceClass {
    Doctest,
    Unit,
    Property,
    Curated,
    Synthesized,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oracle {
    Human,
    /// Expected values were read off a run: they freeze today's behaviour.
    Observed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkTier {
    /// The example stands in the item's own documentation.
    DocOfItem,
    /// The test's name names the function.
    Name,
    /// The only function of the crate that the test calls.
    OnlyCallee,
    /// Its result flows into an assertion.
    AssertedCallee,
    /// The last local call.
    LastCallee,
    /// Written together by hand.
    Curated,
}

/// `manifest.json` of the corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusManifest {
    pub schema_version: u32,
    pub sources: Vec<CorpusSource>,
    /// Rows of each split file.
    pub counts: Map<u64>,
    /// Rows with property tests, as a share of each split.
    pub property_share: Map<f64>,
    pub funnel: Funnel,
    pub leakage: Leakage,
    /// SHA-256 of every holdout and stress function, sorted.
    pub holdout_sha256: Vec<String>,
    pub toolchain: String,
    /// What was asked for and could not be had, in words; empty when all was had.
    pub shortfalls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusSource {
    #[serde(rename = "crate")]
    pub crate_name: String,
    pub version: String,
    pub license: String,
    /// The lock file's checksum.
    pub checksum: Option<String>,
    pub source_classes: Vec<SourceClass>,
    pub rows: u64,
}

/// How many candidates reached, and were dropped at, each step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Funnel {
    pub functions_seen: u64,
    pub pairs_linked: u64,
    /// Reason -> candidates dropped.
    pub dropped: Map<u64>,
    pub duplicates_exact: u64,
    pub duplicates_near: u64,
    pub kept: u64,
}

/// Overlap of the holdout with the training split.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Leakage {
    pub exact: u64,
    pub normalized: u64,
    pub ngram13: u64,
    /// Nearly the same function, by 5-grams with or without names.
    #[serde(default)]
    pub near: u64,
    /// Highest 5-gram Jaccard similarity of a holdout row to a training row, with the two ids.
    pub nearest: Vec<Neighbour>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    pub holdout_id: String,
    pub train_id: String,
    pub jaccard: f64,
}
