//! Why a piece of Rust can't be read as a function or as tests.

use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubjectError {
    /// Not Rust. Line from 1, column from 1.
    #[error("{what} does not parse: {message} (line {line}, column {column})")]
    Syntax { what: String, message: String, line: u32, column: u32 },
    /// Rust, but no function and no `impl` block with a method.
    #[error("no function found in `function_code`: it holds {found}")]
    NoFunction { found: String },
}

impl SubjectError {
    pub(crate) fn syntax(what: &str, error: &syn::Error) -> Self {
        let start = error.span().start();
        Self::Syntax {
            what: what.to_owned(),
            message: error.to_string(),
            line: u32::try_from(start.line).unwrap_or(u32::MAX),
            column: u32::try_from(start.column + 1).unwrap_or(u32::MAX),
        }
    }
}
