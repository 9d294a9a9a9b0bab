//! Training and generation with a Qwen2 model.
//!
//! The model emits a [`plan`] of operations; [`place`] puts its buffers into one arena, [`verify`] proves that nothing
//! overlaps and nothing is read before it is written, [`cost`] counts; a [`backend`] runs it. [`Trainer`] and
//! [`Generator`] stand on top. `docs/ENGINE.md` describes plan, random numbers and precision.

mod any;
mod api;
pub mod backend;
mod batch;
pub mod cost;
pub mod cpu;
pub mod cuda;
pub mod device;
mod error;
mod generate;
pub mod place;
pub mod plan;
mod sample;
mod setup;
mod train;
pub mod verify;

pub use api::*;
pub use batch::{Packer, Prepared};
pub use device::ComputeDevice;
pub use error::EngineError;
pub use generate::Generator;
pub use train::{Ahead, Trainer};
