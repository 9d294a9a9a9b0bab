//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{}: can't {action}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Unsupported { path: PathBuf, reason: String },
    #[error("{}: the cache has format {found}, which this runner does not know", path.display())]
    Version { path: PathBuf, found: String },
    /// An object that an entry names is not in the store.
    #[error("{what} is not in the cache")]
    Missing { what: String },
}

impl CacheError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// One next step.
    pub fn next_step(&self) -> String {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space on that disk, then run again: finished stages are kept".to_owned()
                }
                io::ErrorKind::PermissionDenied => "check the permissions of that path".to_owned(),
                io::ErrorKind::NotFound => "check the path".to_owned(),
                _ => "check that disk and path".to_owned(),
            },
            Self::Unsupported { .. } => "let the stage write plain files and folders".to_owned(),
            Self::Version { .. } => "move that folder away, or use the runner that made it".to_owned(),
            Self::Missing { .. } => "run again: what is missing is made again".to_owned(),
        }
    }
}
