//! Mutation testing by schemata: all mutants of a function in one source text, chosen when the program runs.
//!
//! One compilation serves every mutant. The same pass puts in loop fuel, so that a mutant that hangs ends after a fixed
//! number of iterations and not after a time, and probes that say which mutants, branches and lines a test reaches.
//! Making the text is pure; [`score`] alone compiles and runs, through `harness`.

mod edits;
mod error;
mod instrument;
mod lines;
mod operators;
mod prune;
mod rules;
mod runtime;
mod scan;
pub mod score;
mod side_by_side;
mod ticks;
mod values;

pub use edits::{Dropped, Part};
pub use error::MutantError;
pub use instrument::{Instrumented, Program};
pub use prune::{Pruned, Verdict, prune};
pub use runtime::{DEFAULT_FUEL, ENV_FUEL, ENV_MUTANT, Reach};
pub use scan::{BranchSite, MutantSite};
