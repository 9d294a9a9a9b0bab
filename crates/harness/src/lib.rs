//! Compile and run rows and generated tests: toolchain, prebuilt libraries, diagnostics, per-test verdicts.
//!
//! Everything that touches untrusted text goes through [`sandbox`]. A verdict comes over a private pipe, tagged with a
//! number that is fresh for each run, never from an exit code or from stdout.

mod attributes;
mod compile;
mod error;
mod libraries;
mod parallel;
mod program;
mod run;
mod toolchain;
mod verdicts;

pub use compile::{Compilation, CrateKind, Edit, RawDiagnostic, RawSpan, Suggestion};
pub use error::HarnessError;
pub use libraries::Libraries;
pub use parallel::parallel_map;
pub use program::TestProgram;
pub use run::{Build, Harness, Limits, PROPTEST_SEED, RunOptions, TestBinary, TestRun};
pub use toolchain::Toolchain;

/// Every row and every generated test is compiled with this edition.
pub const EDITION: &str = "2021";
