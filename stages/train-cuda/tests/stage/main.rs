//! The stage as a whole, through its program and through its library.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

mod bad_input;
mod golden;
#[cfg(feature = "gpu-tests")]
mod gpu;
mod predecessor_faults;
mod resume;
mod run;
#[cfg(feature = "cuda")]
mod stand_in;
mod stopped;
mod support;
