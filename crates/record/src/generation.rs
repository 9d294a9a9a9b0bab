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
    /// The token limit.
    Length,
}

/// A line of a task file given as token ids, for comparison with other implementations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenTask {
    pub id: String,
    pub prompt_ids: Vec<u32>,
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
