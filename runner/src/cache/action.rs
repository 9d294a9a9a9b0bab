//! Action entries: what a stage made under a key, with every component of that key.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Entry, Result, Store, read_text};
use crate::plan::KeyComponents;

const ACTION_SCHEMA_VERSION: u32 = 2;
/// Keys kept per node, for comparison.
const HISTORY: usize = 40;

/// A successful execution. Failures have no entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionEntry {
    pub schema_version: u32,
    pub key: String,
    pub components: KeyComponents,
    pub outputs: BTreeMap<String, Entry>,
    pub volatile: BTreeSet<String>,
    /// What the program printed.
    pub log: Option<Entry>,
    pub wall_s: f64,
    /// RFC 3339, UTC.
    pub finished: String,
}

#[derive(Deserialize)]
struct Version {
    schema_version: u32,
}

impl ActionEntry {
    pub fn new(
        components: KeyComponents,
        outputs: BTreeMap<String, Entry>,
        wall_s: f64,
        finished: String,
    ) -> Self {
        let volatile = components.outputs.iter().filter(|o| o.volatile).map(|o| o.name.clone()).collect();
        let key = components.key();
        Self {
            schema_version: ACTION_SCHEMA_VERSION,
            key,
            components,
            outputs,
            volatile,
            log: None,
            wall_s,
            finished,
        }
    }

    /// What a consumer's key holds for this output. A volatile output has no identity of its own: it counts as
    /// changed whenever its producer's key changed, whatever its bytes are.
    pub fn output_identity(&self, output: &str) -> Option<String> {
        let entry = self.outputs.get(output)?;
        Some(if self.volatile.contains(output) {
            format!("of-action:{}", self.key)
        } else {
            entry.to_string()
        })
    }
}

impl Store {
    /// The entry of a key; `None` where there is none or it is damaged.
    pub fn action(&self, key: &str) -> Option<ActionEntry> {
        let path = self.sharded("actions", key);
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(_) => String::new(),
        };
        let intact = text
            .split_once('\n')
            .filter(|(sum, body)| blake3::hash(body.as_bytes()).to_hex().as_str() == *sum);
        let parsed = intact.and_then(|(_, body)| serde_json::from_str::<ActionEntry>(body).ok());
        let version = || intact.and_then(|(_, body)| serde_json::from_str::<Version>(body).ok());
        let version =
            parsed.as_ref().map(|e| e.schema_version).or_else(|| version().map(|v| v.schema_version));
        if version.is_some_and(|v| v != ACTION_SCHEMA_VERSION) {
            // Of another runner, and whole.
            return None;
        }
        let parsed = parsed.filter(|entry| entry.key == key && entry.components.key() == key);
        if parsed.is_none() {
            self.quarantine(&path, &format!("the cached action {}", &key[..12.min(key.len())]));
        }
        parsed
    }

    /// Writes an entry: the last step of a commit, after everything it names is durable.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn put_action(&self, node: &str, entry: &ActionEntry) -> Result<()> {
        let body = serde_json::to_string_pretty(entry).unwrap_or_default();
        let text = format!("{}\n{body}", blake3::hash(body.as_bytes()).to_hex());
        self.write_atomically(&self.sharded("actions", &entry.key), text.as_bytes(), true)?;
        self.note_history(node, &entry.key);
        Ok(())
    }

    /// Puts `key` at the end of a node's history. Best effort: history only serves explanations.
    pub fn note_history(&self, node: &str, key: &str) {
        let mut keys = self.history(node);
        if keys.last().is_some_and(|last| last == key) {
            return;
        }
        keys.retain(|k| k != key);
        keys.push(key.to_owned());
        let from = keys.len().saturating_sub(HISTORY);
        let _ = self.write_atomically(&self.history_path(node), keys[from..].join("\n").as_bytes(), false);
    }

    /// Keys that a node ran under, oldest first.
    pub fn history(&self, node: &str) -> Vec<String> {
        let text = read_text(&self.history_path(node)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn history_path(&self, node: &str) -> std::path::PathBuf {
        self.root.join("history").join(node)
    }
}
