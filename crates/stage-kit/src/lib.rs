//! The stage side of the protocol: request, parameters, atomic outputs, events, progress, signals, errors.
//!
//! A stage program is a type that implements [`Stage`] and a `main` that calls [`main`]. The same program then runs under
//! the runner (a request file named by `TESTFORGE_REQUEST`), by hand (`--input NAME=PATH --output NAME=PATH --set P=V`),
//! and answers `--describe`.

mod cli;
mod context;
pub mod digest;
mod error;
pub mod files;
mod places;
mod progress;
mod stage;

pub use context::{Context, ContextBuilder};
pub use error::StageError;
pub use progress::Progress;
pub use record::exit::ExitCode;
pub use stage::{Alias, Outcome, PortSpec, Stage, Target, main};

/// Result of a stage's work.
pub type Result<T, E = StageError> = std::result::Result<T, E>;
