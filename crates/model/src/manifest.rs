//! `manifest.json` of a model folder: what the files are and that they are still the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use record::model::{MODEL_SCHEMA_VERSION, ModelManifest};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::{ModelError, Result, names, parallel, tokenizer, weights};

pub const FILE: &str = "manifest.json";

/// Where a model came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    pub source: String,
    pub revision: Option<String>,
    pub license: Option<String>,
}

/// Describes the model in `dir`: every file is hashed. The counts come from `config.json`, so load the weights first.
///
/// # Errors
/// A file can't be read, there are no weights, or there is no tokenizer.
pub fn describe(dir: &Path, origin: Origin) -> Result<ModelManifest> {
    let manifest = describe_files(dir, origin)?;
    if manifest.tokenizer_sha256.is_empty() { Err(missing(dir, tokenizer::FILE)) } else { Ok(manifest) }
}

/// As [`describe`]; without a tokenizer its hash is empty.
fn describe_files(dir: &Path, origin: Origin) -> Result<ModelManifest> {
    let config = Config::from_dir(dir)?;
    let mut names_paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| ModelError::io("list", dir, e))? {
        let path = entry.map_err(|e| ModelError::io("list", dir, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| *n != FILE) else { continue };
        if path.is_file() {
            names_paths.push((name.to_owned(), path));
        }
    }
    let hashes = parallel::map(&names_paths, parallel::available(), |(_, path)| sha256_file(path));
    let files: BTreeMap<String, String> = names_paths
        .into_iter()
        .zip(hashes)
        .map(|((name, _), hash)| Ok((name, hash?)))
        .collect::<Result<_>>()?;
    Ok(ModelManifest {
        schema_version: MODEL_SCHEMA_VERSION,
        source: origin.source,
        revision: origin.revision,
        license: origin.license,
        model_sha256: identity(&files).ok_or_else(|| missing(dir, weights::FILE))?,
        tokenizer_sha256: files.get(tokenizer::FILE).cloned().unwrap_or_default(),
        files,
        n_tensors: names::expected(&config).len() as u64,
        n_parameters: names::n_parameters(&config),
    })
}

fn missing(dir: &Path, what: &str) -> ModelError {
    ModelError::Manifest { place: dir.display().to_string(), message: format!("has no {what}") }
}

/// SHA-256 over the sorted `name\0sha256\n` lines of the weight files; `None` when there are none.
fn identity(files: &BTreeMap<String, String>) -> Option<String> {
    let lines: Vec<String> = files
        .iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(name, sha256)| format!("{name}\0{sha256}\n"))
        .collect();
    (!lines.is_empty()).then(|| hex::encode(Sha256::digest(lines.concat())))
}

/// Writes `manifest.json` into `dir`.
///
/// # Errors
/// The file can't be written.
pub fn save(dir: &Path, manifest: &ModelManifest) -> Result<()> {
    let path = dir.join(FILE);
    let place = path.display().to_string();
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|e| ModelError::Manifest { place, message: format!("can't write as JSON: {e}") })?;
    fs::write(&path, text + "\n").map_err(|e| ModelError::io("write", &path, e))
}

/// The manifest of the model in `dir`; made on the spot for a folder that has none, such as one that transformers wrote.
/// Such a folder may lack a tokenizer: then `tokenizer_sha256` is empty.
///
/// # Errors
/// The manifest is damaged or of another schema version, or the folder is no model.
pub fn load(dir: &Path) -> Result<ModelManifest> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return describe_files(dir, Origin { source: "file:".to_owned(), ..Origin::default() });
        }
        Err(e) => return Err(ModelError::io("read", &path, e)),
    };
    let place = path.display().to_string();
    let manifest: ModelManifest = serde_json::from_str(&text).map_err(|e| ModelError::Manifest {
        place: format!("{place}:{}", e.line()),
        message: format!("not a manifest: {e}"),
    })?;
    if manifest.schema_version != MODEL_SCHEMA_VERSION {
        let message = format!(
            "schema_version is {}, this program reads {MODEL_SCHEMA_VERSION}",
            manifest.schema_version
        );
        return Err(ModelError::Manifest { place, message });
    }
    Ok(manifest)
}

/// Hashes every file again.
///
/// # Errors
/// Names the first file that is missing, changed or not in the manifest.
pub fn verify(dir: &Path, manifest: &ModelManifest) -> Result<()> {
    let files: Vec<(&String, &String)> = manifest.files.iter().collect();
    let hashes = parallel::map(&files, parallel::available(), |(name, _)| sha256_file(&dir.join(name)));
    for ((name, sha256), found) in files.into_iter().zip(hashes) {
        let path = dir.join(name);
        if found? != *sha256 {
            let message = "its bytes are not those of manifest.json".to_owned();
            return Err(ModelError::Manifest { place: path.display().to_string(), message });
        }
    }
    Ok(())
}

fn sha256_file(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex::encode(hasher.finalize())),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    read().map_err(|e| ModelError::io("read", path, e))
}
