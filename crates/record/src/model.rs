//! `manifest.json` of a model folder.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const MODEL_SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelManifest {
    pub schema_version: u32,
    /// As asked for: hub id, `file:`, `embedded:` or `random:`.
    pub source: String,
    /// The hub's commit, where there is one.
    pub revision: Option<String>,
    pub license: Option<String>,
    /// File name -> SHA-256, every file of the folder but this one.
    pub files: Map<String>,
    /// SHA-256 over the sorted `name\0sha256\n` lines of the weight files: the model's identity.
    pub model_sha256: String,
    pub tokenizer_sha256: String,
    pub n_tensors: u64,
    pub n_parameters: u64,
}
