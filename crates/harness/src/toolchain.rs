//! The Rust compiler in use.

use std::path::PathBuf;

use crate::HarnessError;

/// A compiler, called directly: a rustup proxy would look for its toolchain in the environment that is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub clippy_driver: Option<PathBuf>,
    /// `rustc -vV`.
    pub version: String,
    /// `clippy-driver --version`.
    pub linter: Option<String>,
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// The compiler named by `RUSTC`, else the one on `PATH`.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub fn find() -> Result<Self, HarnessError> {
        Err(HarnessError::NoToolchain("not looked for".to_owned()))
    }
}
