//! Generation.

use crate::EngineError;
use crate::api::{GenRequest, GenResult, GenerateOptions};
use model::adapter::Adapter;
use model::config::Config;
use model::weights::Weights;

/// Runs a model forward and samples from it.
#[derive(Debug)]
pub struct Generator {
    options: GenerateOptions,
}

impl Generator {
    /// # Errors
    /// When weights, adapter and options do not fit together.
    pub fn new(_config: &Config, _weights: &Weights, _adapter: Option<&Adapter>, options: GenerateOptions) -> Result<Self, EngineError> {
        Ok(Generator { options })
    }
    /// `T x V`, row-major.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or the sequence does not fit.
    pub fn logits(&mut self, _ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::TooLong { what: "skeleton".into(), given: 0, room: self.options.max_tokens })
    }
    /// Calls `on_token(request, tokens so far)` after each token; `false` ends generation early.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or a request does not fit.
    pub fn generate(
        &mut self,
        _requests: &[GenRequest],
        _on_token: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<GenResult>, EngineError> {
        Err(EngineError::Mismatch("skeleton".into()))
    }
}
