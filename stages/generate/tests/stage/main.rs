//! The stage as a whole, through its program and through its library.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod golden;
mod run;
#[cfg(feature = "cuda")]
mod stand_in;
mod support;
