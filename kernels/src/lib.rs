//! Code that talks to hardware directly: CUDA devices, and the matrix products of the CPU backend.
//!
//! One of the two rooms where `unsafe` stands; everything that leaves it is safe to call with any argument.

pub mod cuda;
pub mod gemm;
pub mod probe;
pub mod random;
pub mod sample;
pub mod wide;

pub use probe::{Device, LEAST_MAJOR, Probe, probe};
