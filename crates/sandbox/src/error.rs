//! Why a command could not be run.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(
        "this machine isolates at level {reached}, level {wanted} is required; not available here: {}",
        missing.join(", ")
    )]
    Level { wanted: u8, reached: u8, missing: Vec<String> },
    #[error("can't start `{}` in the sandbox: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("can't {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("can't build the file rules: {0}")]
    FileRules(String),
}

impl SandboxError {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}
