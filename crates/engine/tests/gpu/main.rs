//! The CUDA backend against the CPU backend and the reference implementations. Needs a GPU, and fails without one.

#![cfg(feature = "gpu-tests")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "errors are for people")]

mod beside;
#[path = "../common/mod.rs"]
mod common;
mod decode;
mod fresh;
mod golden;
mod modules;
mod operations;
mod ranks;
mod repeat;
