//! What a run trains, as it is written to disk: an adapter in PEFT's layout, or all weights in float32.

use std::path::Path;

use model::config::Config;
use model::weights::Weights;
use model::{Dtype, ModelError, adapter};
use stage_kit::{Result, StageError};

/// The trained tensors at some step.
#[derive(Debug)]
pub(crate) enum Trained {
    Adapter(adapter::Adapter),
    /// With the configuration that the folder gets, so that a checkpoint can be loaded by itself.
    Model(Weights, Box<Config>),
}

impl Trained {
    /// Writes the weights and their configuration into `dir`.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Adapter(adapter) => adapter.save(dir).map_err(model_error),
            Self::Model(weights, config) => {
                weights.save(dir, Some(Dtype::F32)).map_err(model_error)?;
                let path = dir.join("config.json");
                std::fs::write(&path, config.to_json(Dtype::F32))
                    .map_err(|e| StageError::io("write", &path, e))
            }
        }
    }
}

/// The file that holds the weights.
pub(crate) fn file_name(is_adapter: bool) -> &'static str {
    if is_adapter { adapter::FILE } else { model::weights::FILE }
}

/// An error of the model's files as the stage's.
pub(crate) fn model_error(e: ModelError) -> StageError {
    StageError::failed(e.message()).at(e.place()).next(e.next_step())
}
