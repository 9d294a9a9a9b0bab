//! What can go wrong between a program and the engine.

use crate::backend::BackendError;
use thiserror::Error;

/// Failures of [`crate::Trainer`] and [`crate::Generator`].
#[derive(Debug, Error)]
pub enum EngineError {
    /// The loss or the gradient is NaN or infinite; parameters are as they were before the step.
    #[error("{what} is not finite at step {step}: lower the learning rate, or look at the data of this step")]
    NonFinite { what: &'static str, step: u64 },
    /// Finite weights, and numbers that overflow all the same.
    #[error(
        "request {request}: the logits after {position} tokens are not finite numbers: the weights overflow"
    )]
    Logits { request: usize, position: u64 },
    /// An update was begun and did not end well: parameters and moments may be those of the step after the last one that counts,
    /// or some of them. Nothing of the trainer can be used until a state is loaded.
    #[error(
        "the update of step {step} was begun, and how far it came is not known: the parameters belong to no step"
    )]
    Unsettled { step: u64 },
    /// No token of the step carries a loss.
    #[error("step {step} has no token with a label: nothing to learn from")]
    NoLabels { step: u64 },
    /// A micro-batch or a prompt does not fit what was planned.
    #[error("{what}: {given} tokens given, room for {room}")]
    TooLong { what: String, given: usize, room: usize },
    /// Ids outside the vocabulary, labels without ids, empty sequences.
    #[error("bad input: {0}")]
    Input(String),
    /// Weights, adapter or options do not fit together.
    #[error("{0}")]
    Mismatch(String),
    /// The callback of a generation said stop.
    #[error("generation was cancelled")]
    Cancelled,
    #[error("quantising {name}: {source}")]
    Quantise { name: String, source: model::nf4::Nf4Error },
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}
