//! The stage as a whole, through its program and through its library.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod golden;
mod run;
mod support;
