//! A Qwen2 model as data: configuration, weights, adapters, tokenizer, prompts, random numbers.
//!
//! Nothing here computes a forward pass. Files come in and go out in the layouts of Hugging Face transformers and PEFT,
//! every shape is checked against the configuration, and the same bytes come out on every machine.

pub mod adapter;
pub mod config;
mod error;
pub mod init;
pub mod manifest;
pub mod names;
pub mod nf4;
pub mod parallel;
pub mod philox;
pub mod prompt;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

pub use error::ModelError;
pub use tensor::{Dtype, Tensor};

/// Result of reading or writing a part of a model.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
