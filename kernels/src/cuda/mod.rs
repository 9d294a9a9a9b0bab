//! Work on NVIDIA GPUs.
//!
//! A launcher in [`ops`] checks shapes and types once and returns a [`Work`]; works run in order on one stream, or as a
//! [`Schedule`] with some of them beside it, started one by one or as a captured [`Graph`]. Kernels are compiled at run time ([`compile`]), so nothing here needs CUDA to be built.

mod algorithm;
pub mod compile;
mod error;
mod gpu;
mod graph;
mod launch;
mod matmul;
mod memory;
pub mod ops;
mod schedule;

pub use error::CudaError;
pub use gpu::{Gpu, Properties};
pub use graph::{Event, Graph};
pub use launch::{Cost, Work, run_all};
pub use matmul::{Finish, Form, Matmul, WORKSPACE_BYTES, few_rows, few_rows_bytes, split, split_bytes};
pub use memory::{Dtype, Memory, Pinned, Tensor, bf16_bits};
pub use schedule::{LANES, Lane, Piece, Schedule};
