//! `metadata.json` of a folder of tokens.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const TOKENS_SCHEMA_VERSION: u32 = 1;

/// What `train.parquet` and `validation.parquet` hold, and what did not get in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensManifest {
    pub schema_version: u32,
    /// `chat`, `transcript` or `text`.
    pub content: String,
    pub tokenizer_sha256: String,
    pub template_sha256: String,
    /// In tokens.
    pub max_length: u64,
    /// `drop` or `error`.
    pub over_long: String,
    /// `train` and `validation`.
    pub splits: Map<SplitTokens>,
    /// SHA-256 of every holdout and stress function, sorted; none of them is in the splits.
    pub holdout_sha256: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitTokens {
    /// In the corpus.
    pub rows_read: u64,
    /// In the parquet file.
    pub rows: u64,
    /// Ids of the rows with more tokens than the limit: left out whole, never cut.
    pub over_long: Vec<String>,
    pub tokens: u64,
    pub label_tokens: u64,
    /// Tokens of the longest row that was kept.
    pub longest: u64,
}
