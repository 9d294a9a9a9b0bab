//! JSON and JSON-lines files, with errors that name the file and the line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, StageError};

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| StageError::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| damaged(path, e.line(), &e))
}

/// Reads a file that carries a `schema_version` and refuses any other than `version`.
pub fn read_versioned<T: DeserializeOwned>(path: &Path, version: u32) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| StageError::io("read", path, e))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| damaged(path, e.line(), &e))?;
    match value.get("schema_version").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(version) => {}
        found => {
            let found = found.map_or("none".to_owned(), |v| v.to_string());
            return Err(StageError::failed(format!(
                "schema_version is {found}, this program reads {version}"
            ))
            .at(path.display().to_string())
            .next("make the file again with a stage of this version"));
        }
    }
    // From the text once more: a value no longer knows its lines.
    serde_json::from_str(&text).map_err(|e| damaged(path, e.line(), &e))
}

/// Pretty-printed with sorted map keys and a final newline.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| {
        StageError::internal(format!("can't write as JSON: {e}")).at(path.display().to_string())
    })?;
    text.push('\n');
    fs::write(path, text).map_err(|e| StageError::io("write", path, e))
}

/// Writes beside `path`, then renames: a reader sees the old file or the new one.
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let partial = path.with_extension("json.tmp");
    write_json(&partial, value)?;
    fs::rename(&partial, path).map_err(|e| StageError::io("replace", path, e))
}

/// Every line of a JSON-lines file. An empty last line is fine; any other damage names its line.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| StageError::io("read", path, e))?;
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line =
            line.map_err(|e| StageError::io("read", path, e).at(format!("{}:{}", path.display(), i + 1)))?;
        if line.trim().is_empty() {
            continue;
        }
        rows.push(serde_json::from_str(&line).map_err(|e| damaged(path, i + 1, &e))?);
    }
    Ok(rows)
}

pub fn write_jsonl<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<()> {
    let file = File::create(path).map_err(|e| StageError::io("create", path, e))?;
    let mut out = BufWriter::new(file);
    for row in rows {
        serde_json::to_writer(&mut out, &row).map_err(|e| StageError::io("write", path, e.into()))?;
        out.write_all(b"\n").map_err(|e| StageError::io("write", path, e))?;
    }
    out.flush().map_err(|e| StageError::io("write", path, e))
}

fn damaged(path: &Path, line: usize, error: &serde_json::Error) -> StageError {
    StageError::failed(format!("not what it should be: {error}"))
        .at(format!("{}:{line}", path.display()))
        .next("the file is damaged or of another kind: make it again with the stage that writes it")
}
