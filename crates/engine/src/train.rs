//! Training.

use crate::EngineError;
use crate::api::{AdamW, LossSum, MicroBatch, StepOutcome, TrainOptions, TrainState};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;
use std::collections::BTreeMap;

/// Forward, backward and update of one model.
#[derive(Debug)]
pub struct Trainer {
    options: TrainOptions,
}

impl Trainer {
    /// # Errors
    /// When weights, adapter and options do not fit together.
    pub fn new(_config: &Config, _weights: &Weights, _adapter: Option<&Adapter>, options: TrainOptions) -> Result<Self, EngineError> {
        Ok(Trainer { options })
    }
    #[must_use]
    pub fn planned_peak_bytes(&self) -> u64 {
        self.options.max_tokens as u64
    }
    /// # Errors
    /// When the loss is not finite.
    pub fn step(&mut self, _micro_batches: &[MicroBatch], _optimizer: &AdamW) -> Result<StepOutcome, EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
    /// # Errors
    /// When the batch does not fit.
    pub fn evaluate(&mut self, _micro: &MicroBatch) -> Result<LossSum, EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
    /// # Errors
    /// When the batch does not fit.
    pub fn gradients(&mut self, _micro: &MicroBatch) -> Result<BTreeMap<String, Vec<f32>>, EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
    #[must_use]
    pub fn adapter(&self) -> Option<Adapter> {
        None
    }
    /// # Errors
    /// When tensors can't be put together.
    pub fn weights(&self) -> Result<Weights, EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
    #[must_use]
    pub fn state(&self) -> TrainState {
        TrainState { step: 0, master: Vec::new(), m: Vec::new(), v: Vec::new(), table: BTreeMap::new() }
    }
    /// # Errors
    /// When the state is of another model.
    pub fn load_state(&mut self, _state: &TrainState) -> Result<(), EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
    /// Hexadecimal SHA-256 of the frozen tensors as they are now.
    #[must_use]
    pub fn base_sha256(&self) -> String {
        String::new()
    }
}
