//! The types that programs hand to the engine and get back from it.

use crate::device::ComputeDevice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is trained, and on which base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every weight of the model.
    Full,
    /// Low-rank adapters on a base as given.
    Lora,
    /// Low-rank adapters on a base whose layer projections went through NF4.
    Qlora { double_quant: bool },
}

/// Rounding of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Everything in float32.
    #[default]
    Float32,
    /// float32 sums; each activation is rounded to bfloat16 when an operation has written it, the base weights once. On a
    /// GPU the factors of products are bfloat16, adapters too.
    Bf16Rounded,
}

/// What a layer keeps from its forward for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SavePolicy {
    #[default]
    All,
    /// Gate and up projections are computed again.
    NoGateUp,
    /// Only the layer's input is kept; the whole layer is computed again.
    Input,
}

/// How a [`crate::Trainer`] works; none of it changes between steps.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    pub mode: Mode,
    /// Adapter dropout, in `0.0..1.0`; quantised to 1/65536.
    pub dropout: f32,
    pub precision: Precision,
    /// Threads for one operation; results don't depend on it.
    pub threads: usize,
    /// Key of the dropout masks.
    pub seed: u64,
    pub save: SavePolicy,
    /// Most tokens of one micro-batch.
    pub max_tokens: usize,
    pub device: ComputeDevice,
    /// In qlora on a GPU: the base stays in NF4 and is unpacked before each use, for 0.5 GB less at 0.5B parameters. The
    /// numbers are the same.
    pub packed_base: bool,
}

/// One sample of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Identifies the sample for dropout, wherever it is packed.
    pub sample_id: u64,
    pub input_ids: Vec<u32>,
    /// `labels[i]` belongs to `input_ids[i]` (the engine shifts by one); -100 carries no loss.
    pub labels: Vec<i32>,
}

/// Sequences packed without padding: attention stays inside each, positions restart at 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    pub sequences: Vec<Sequence>,
}

/// AdamW as torch computes it in float32, after clipping the global norm as torch does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// On matrices (A and B of adapters included), not on biases and norms.
    pub weight_decay: f64,
    /// Greatest global gradient norm; 0 or infinity: no clipping.
    pub clip: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Sum of the token losses over all micro-batches, divided by `label_tokens` (nats).
    pub loss: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    pub label_tokens: u64,
    /// All tokens that went through the model.
    pub tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSum {
    /// Sum of token losses (nats).
    pub sum: f64,
    pub label_tokens: u64,
}

/// Where a trainable tensor lies in the flat slabs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub start: usize,
    pub len: usize,
}

/// Everything that training changes, to stop and go on.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    pub master: Vec<f32>,
    /// First and second moments.
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    /// PEFT or HF tensor name -> range in each slab.
    pub table: BTreeMap<String, Range>,
}

/// The weights that generation runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Base {
    #[default]
    Float32,
    /// Layer projections through NF4, as qlora trained on them.
    Nf4 { double_quant: bool },
}

#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    pub threads: usize,
    /// Tokens that the key-value cache holds, all running sequences together (prompt and completion).
    pub max_tokens: usize,
    /// Tokens of the longest sequence, prompt and completion.
    pub max_length: usize,
    /// Sequences that run at a time, up to 256; completions don't depend on it.
    pub max_sequences: usize,
    pub base: Base,
    pub precision: Precision,
    pub device: ComputeDevice,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    Greedy,
    Sample {
        temperature: f32,
        /// 0: no limit.
        top_k: usize,
        /// 1.0: no limit.
        top_p: f32,
        seed: u64,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct GenRequest {
    /// With the seed and the position it keys the draws: a sequence's tokens don't depend on its neighbours.
    pub sequence_id: u64,
    pub prompt_ids: Vec<u32>,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Generation ends when one of these is drawn; it is not part of the result.
    pub stop_ids: Vec<u32>,
    /// Ids from here on are never drawn (rows of the vocabulary without a token).
    pub banned_from: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenResult {
    pub ids: Vec<u32>,
    pub finish: Finish,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenEvent {
    /// It has a part of the cache, and its prompt is fed from now on.
    Started,
    /// A token was drawn; so many are done. One that stops the sequence is not counted.
    Token(usize),
    Finished(GenResult),
}
