//! Why a row can't be mutated.

use subject::SubjectError;
use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MutantError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The function compiles as it is, and with probes but without any mutant it does not.
    #[error("the instrumented function does not compile even without mutants: {0}")]
    NotInstrumentable(String),
}
