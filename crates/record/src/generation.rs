//! `samples.jsonl`, and tasks given by hand.

use serde::{Deserialize, Serialize};

use crate::Map;

/// One generated completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The corpus row's id.
    pub task_id: String,
    /// 0 is the greedy sample when the run asks for one.
    pub sample_idx: u32,
    /// 0 first, then one per repair round.
    pub round: u32,
    pub seed: u64,
    pub prompt_sha256: String,
    /// Decoded, stop token excluded.
    pub completion: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_ids: Option<Vec<u32>>,
    pub finish_reason: FinishReason,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub model_sha256: String,
    pub adapter_sha256: Option<String>,
    pub tokenizer_sha256: String,
    pub template_sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token of the model's generation config.
    Stop,
    /// The token limit, or the model's last position.
    Length,
    /// The prompt alone fills the model's positions: nothing was generated, nothing was cut.
    PromptTooLong,
}

/// A line of a task file given as token ids, for comparison with other implementations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenTask {
    pub id: String,
    pub prompt_ids: Vec<u32>,
}

pub const SAMPLES_SCHEMA_VERSION: u32 = 1;

/// `manifest.json` beside `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplesManifest {
    pub schema_version: u32,
    pub backend: String,
    pub n_tasks: u64,
    pub n_samples: u64,
    /// Samples that ended as [`FinishReason::PromptTooLong`].
    pub n_prompts_too_long: u64,
    /// The highest round in the file.
    pub round: u32,
    pub seed: u64,
    pub model_sha256: String,
    pub adapter_sha256: Option<String>,
    pub tokenizer_sha256: String,
    pub template_sha256: String,
    /// Of `samples.jsonl`.
    pub samples_sha256: String,
    /// As resolved, defaults filled in.
    pub params: Map<serde_json::Value>,
}

/// A line of `timings/timings.jsonl` (volatile).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationTiming {
    pub task_id: String,
    pub sample_idx: u32,
    pub latency_ms: f64,
    pub completion_tokens: u32,
}

/// `timings/summary.json` (volatile).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationSummary {
    pub schema_version: u32,
    pub device: String,
    pub backend: String,
    pub wall_s: f64,
    pub tokens_per_s: f64,
    pub extra: Map<f64>,
}
