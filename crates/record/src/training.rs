//! What the trainer writes: step records, the live state, the manifest of an adapter or a model.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const TRAINING_SCHEMA_VERSION: u32 = 1;

/// One optimizer step. A line of `checkpoints/steps.jsonl` and an event. No clock in it: a function of the key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// From 1.
    pub epoch: u64,
    /// Sum of token losses over the step's micro-batches, divided by their label tokens.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    pub label_tokens: u64,
    /// Tokens that went through the model, padding excluded.
    pub tokens: u64,
}

/// A validation pass. A line of `checkpoints/validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    pub label_tokens: u64,
}

/// From a step on, so many tokens went through a GPU at a time: sums are made in an order that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensFrom {
    /// 0: from the start.
    pub after_step: u64,
    pub tokens: u64,
}

/// `manifest.json` beside an adapter or a trained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingManifest {
    pub schema_version: u32,
    /// `adapter` or `model`.
    pub kind: String,
    /// `full`, `lora` or `qlora`.
    pub mode: String,
    /// `best` or `last`.
    pub select: String,
    pub selected_step: u64,
    pub steps: u64,
    pub epochs: u64,
    pub backend: String,
    /// More than one entry: the run was interrupted, and went on with another number. Empty on the CPU, where rows go by the
    /// parameter `batch`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens_at_a_time: Vec<TokensFrom>,
    /// Identity of the model folder that was trained on: its `ModelManifest::model_sha256`.
    #[serde(default)]
    pub model_sha256: String,
    /// SHA-256 of the base tensors as the trainer holds them (in `qlora`: as 4-bit storage gives them back), before the first step.
    pub base_model_sha256: String,
    /// SHA-256 of the base tensors after training; equal to the one before, or training is refused as faulty.
    pub base_model_sha256_after: Option<String>,
    pub tokenizer_sha256: String,
    pub template_sha256: String,
    /// Of the weights written beside this file.
    pub weights_sha256: String,
    pub n_trainable: u64,
    pub first_train_loss: f64,
    pub final_train_loss: f64,
    pub validation_loss_before: Option<f64>,
    pub best_validation_loss: Option<f64>,
    /// As resolved, defaults filled in.
    pub params: Map<serde_json::Value>,
}

/// `log/metrics.json` (volatile).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingMetrics {
    pub schema_version: u32,
    pub backend: String,
    pub device: String,
    pub wall_s: f64,
    pub tokens_per_s: f64,
    pub steps: u64,
    pub final_loss: f64,
    pub best_validation_loss: Option<f64>,
    pub max_grad_norm: f64,
    /// Planned before the first step: parameters, optimizer state and the arena.
    pub planned_peak_bytes: u64,
    /// Highest resident set of the process, where the system tells it.
    pub peak_rss_bytes: Option<u64>,
    /// The most GPU memory that NVML showed in use, once a second; absent where nothing was read.
    pub peak_vram_bytes: Option<u64>,
    /// Whose memory that is: `process`, or `device` with all that others hold, where the driver does not tell them apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_vram_scope: Option<String>,
    /// By NVML, over the time from the first step's end to the last one's: the share of time with any work at all.
    pub mean_gpu_utilization_percent: Option<f64>,
    /// Operations of the model's products for the real tokens, over what the device would do in the same time at
    /// `mfu_of_tflops`; absent on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu_of_tflops: Option<f64>,
    pub interrupted_and_resumed: bool,
}

/// `live/training_state.json`, replaced atomically. Field names as entrenar 0.7 writes them, so that its monitors read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    pub timestamp_ms: u64,
    /// From 1.
    pub epoch: u64,
    pub total_epochs: u64,
    /// Inside the epoch.
    pub step: u64,
    pub steps_per_epoch: u64,
    pub loss: f64,
    pub loss_history: Vec<f64>,
    pub learning_rate: f64,
    #[serde(default)]
    pub lr_history: Vec<f64>,
    pub gradient_norm: f64,
    #[serde(default)]
    pub accuracy: f64,
    pub tokens_per_second: f64,
    #[serde(default)]
    pub samples_per_second: f64,
    pub start_timestamp_ms: u64,
    pub gpu: Option<GpuState>,
    pub sample: Option<SamplePeek>,
    pub status: TrainingStatus,
    /// What the trainer found alarming, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<String>,
    pub experiment_id: String,
    pub model_name: String,
    #[serde(default)]
    pub model_path: String,
    #[serde(default)]
    pub optimizer_name: String,
    #[serde(default)]
    pub batch_size: u64,
    #[serde(default)]
    pub checkpoint_path: String,
    #[serde(default)]
    pub executable_path: String,
}

/// A GPU as NVML shows it. What the driver does not tell is left out, never made up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuState {
    pub device_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Share of the last moments in which the GPU had any work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<f64>,
    /// Of the whole device, whoever holds it; 10^9 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_used_gb: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_total_gb: Option<f64>,
    /// Of the training process alone, where the driver tells it (inside a container it does not).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_own_gb: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    #[serde(default)]
    pub processes: Vec<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplePeek {
    pub input_preview: String,
    pub target_preview: String,
    pub generated_preview: String,
    pub token_match_percent: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainingStatus {
    Initializing,
    Running,
    Paused,
    Completed,
    Failed(String),
}
