//! The prebuilt libraries that a row may link.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use record::libs::{LIBS_SCHEMA_VERSION, PrebuiltLibs};
use sha2::{Digest, Sha256};

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
    pub fn load(dir: &Path, toolchain: &Toolchain) -> Result<Self, HarnessError> {
        let path = dir.join("libs.json");
        let fail =
            |path: &Path, message: String| HarnessError::Libraries { path: path.to_path_buf(), message };
        let text = std::fs::read_to_string(&path).map_err(|e| fail(&path, e.to_string()))?;
        let libs: PrebuiltLibs = serde_json::from_str(&text).map_err(|e| fail(&path, e.to_string()))?;
        if libs.schema_version != LIBS_SCHEMA_VERSION {
            let found = libs.schema_version;
            return Err(fail(&path, format!("schema_version is {found}, not {LIBS_SCHEMA_VERSION}")));
        }
        if libs.rustc.trim() != toolchain.version {
            let (theirs, ours) = (first_line(&libs.rustc), first_line(&toolchain.version));
            return Err(fail(&path, format!("built by another compiler: {theirs}, here is {ours}")));
        }
        for (name, wanted) in &libs.files {
            let file = dir.join(name);
            let found = sha256(&file).map_err(|e| fail(&file, e.to_string()))?;
            if found != *wanted {
                return Err(fail(&file, format!("damaged: its SHA-256 is {found}, not {wanted}")));
            }
        }
        let dir = dir.canonicalize().map_err(|e| fail(dir, e.to_string()))?;
        let mut externs = BTreeMap::new();
        for (name, file) in libs.externs {
            if !libs.files.contains_key(&file) {
                return Err(fail(&path, format!("the extern `{name}` names `{file}`, which has no hash")));
            }
            externs.insert(name, dir.join(file));
        }
        Ok(Self { dir: Some(dir), externs, versions: libs.versions })
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("nothing")
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}
