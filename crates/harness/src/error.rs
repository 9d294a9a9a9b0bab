//! Why something could not be compiled or run at all. Code that does not compile is a result, not an error.

use std::io;
use std::path::PathBuf;

use sandbox::SandboxError;

#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error("no Rust compiler found: {0}; install Rust with rustup, or set RUSTC to a compiler")]
    NoToolchain(String),
    #[error("{path}: {message}; build the libraries again with `prebuild-libs`", path = path.display())]
    Libraries { path: PathBuf, message: String },
    #[error("line {line}, column {column}: {message}")]
    Syntax { line: usize, column: usize, message: String },
    #[error("can't {action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("the compiler itself failed: {0}")]
    Compiler(String),
}
