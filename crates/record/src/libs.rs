//! `libs.json` of the prebuilt libraries.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const LIBS_SCHEMA_VERSION: u32 = 1;

/// The allow-list of libraries that a row may link: `rustc --extern NAME=FILE -L dependency=DIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrebuiltLibs {
    pub schema_version: u32,
    /// `rustc -vV` of the compiler that built them; another compiler can't read them.
    pub rustc: String,
    /// Extern name -> file name in the same folder.
    pub externs: Map<String>,
    /// Package name -> version, direct ones only.
    pub versions: Map<String>,
    /// File name -> SHA-256 of every file.
    pub files: Map<String>,
}
