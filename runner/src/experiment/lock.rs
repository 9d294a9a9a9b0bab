//! `reproducibility.lock`: everything that a second run must have equal, and its verification.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use record::experiment::{
    EXPERIMENT_SCHEMA_VERSION, ExperimentRecord, Hardware, ReproducibilityConfig, ReproducibilityLock,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Folder, sha256_hex};
use crate::cache::{Entry, Store};
use crate::config::Pipeline;
use crate::doctor;
use crate::error::{Result, RunnerError};
use crate::exec::NodeResult;
use crate::plan::Graph;

pub(super) const FILE: &str = "reproducibility.lock";
/// Field of the lock, name of the output that it is the checksum of.
const NAMED: [(&str, &str); 3] = [("model", "model"), ("dataset", "corpus"), ("adapters", "adapter")];

/// A field that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    pub field: String,
    pub locked: Option<String>,
    pub found: Option<String>,
}

/// The part of a lock that comes from the machine and the sources.
fn surroundings_lock(
    store: &Store,
    dir: &Path,
    seed: u64,
    environment: &[(OsString, OsString)],
) -> ReproducibilityLock {
    let rust = crate::resolve::tool_version(store, dir, "rustc", environment);
    let gpu = doctor::nvidia();
    ReproducibilityLock {
        schema_version: EXPERIMENT_SCHEMA_VERSION,
        config: ReproducibilityConfig {
            seed,
            deterministic_algorithms: true,
            cudnn_benchmark: false,
            cudnn_deterministic: true,
        },
        rust: rust
            .ok()
            .and_then(|t| t.lines().next().map(str::to_owned))
            .unwrap_or_else(|| "not installed".to_owned()),
        cuda: gpu.as_ref().and_then(|g| g.cuda.clone()),
        cudnn: None,
        torch: None,
        dependencies: dependencies(dir),
        hardware: Hardware {
            cpu: doctor::cpu_name(),
            gpu: gpu.as_ref().map(|g| g.name.clone()),
            driver: gpu.map(|g| g.driver),
        },
        checksums: BTreeMap::new(),
    }
}

/// Packages of the `Cargo.lock` beside the pipeline.
fn dependencies(dir: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(dir.join("Cargo.lock")).unwrap_or_default();
    let Ok(table) = text.parse::<toml::Table>() else { return BTreeMap::new() };
    let packages = table.get("package").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let field = |p: &toml::Value, name: &str| p.get(name).and_then(toml::Value::as_str).map(str::to_owned);
    packages
        .iter()
        .filter_map(|p| {
            let name = format!("{} {}", field(p, "name")?, field(p, "version")?);
            Some((name, field(p, "checksum").unwrap_or_else(|| "local".to_owned())))
        })
        .collect()
}

/// The lock of a finished run.
pub fn make_lock(
    store: &Store,
    pipeline: &Pipeline,
    folder: &Folder,
    graph: &Graph,
    nodes: &BTreeMap<usize, NodeResult>,
    environment: &[(OsString, OsString)],
) -> ReproducibilityLock {
    let mut lock = surroundings_lock(store, &pipeline.dir, pipeline.seed, environment);
    let finished: Vec<(&str, &str, &crate::cache::ActionEntry)> = nodes
        .iter()
        .filter_map(|(i, r)| {
            let node = &graph.nodes[*i];
            Some((node.name.as_str(), node.stage.as_str(), r.entry.as_ref()?))
        })
        .collect();
    for (node, _, entry) in &finished {
        for (output, content) in entry.outputs.iter().filter(|(name, _)| !entry.volatile.contains(*name)) {
            lock.checksums.insert(format!("{node}.{output}"), blake3_field(content));
        }
    }
    for (field, output) in NAMED {
        let mut owners: Vec<&(&str, &str, &crate::cache::ActionEntry)> =
            finished.iter().filter(|(_, _, e)| e.outputs.contains_key(output)).collect();
        owners.sort_by_key(|(_, stage, _)| {
            pipeline
                .stages
                .get(*stage)
                .and_then(|s| s.run.first())
                .is_none_or(|program| program.value != *stage)
        });
        if let Some((node, _, entry)) = owners.first()
            && let Some(sum) =
                sha256_of(store, &folder.node_dir(node).join(output), entry.outputs.get(output))
        {
            lock.checksums.insert(field.to_owned(), format!("sha256:{sum}"));
        }
    }
    lock
}

fn blake3_field(entry: &Entry) -> String {
    match entry {
        Entry::File { digest, .. } | Entry::Dir { digest } => format!("blake3:{digest}"),
        Entry::Link { target } => format!("link:{target}"),
    }
}

/// SHA-256 over the sorted `path\0sha256\n` lines of the files below; remembered by content.
fn sha256_of(store: &Store, path: &Path, known: Option<&Entry>) -> Option<String> {
    let name = known.map(|e| sha256_hex(e.to_string()));
    if let Some(sum) = name.as_ref().and_then(|n| store.recall("sha256", n)) {
        return Some(sum);
    }
    let mut lines = String::new();
    for entry in walkdir::WalkDir::new(path).sort_by_file_name().into_iter().flatten() {
        if entry.file_type().is_file() {
            let relative = entry.path().strip_prefix(path).unwrap_or(entry.path());
            lines.push_str(&format!("{}\0{}\n", relative.display(), sha256_file(entry.path()).ok()?));
        }
    }
    let sum = sha256_hex(lines);
    if let Some(name) = name {
        store.remember("sha256", &name, &sum);
    }
    Some(sum)
}

fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

/// Writes the lock into the experiment's folder.
///
/// # Errors
/// The disk refuses.
pub fn write_lock(folder: &Folder, lock: &ReproducibilityLock) -> Result<()> {
    let path = folder.root().join(FILE);
    let text = serde_yaml_ng::to_string(lock).unwrap_or_default();
    fs::write(&path, text).map_err(|e| RunnerError::io("write", &path, e))
}

/// Recomputes the lock of an experiment from its files and this machine, and names every field that differs.
///
/// # Errors
/// The lock can't be read.
pub fn verify_lock(
    store: &Store,
    dir: &Path,
    experiment: &Path,
    environment: &[(OsString, OsString)],
) -> Result<Vec<Change>> {
    let path = experiment.join(FILE);
    let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => RunnerError::usage(
            format!("{}: there is no lock: it is written when a run has ended", path.display()),
            "wait for the run's end, or name an earlier experiment: --experiment ID",
        ),
        _ => RunnerError::io("read", &path, e),
    })?;
    let locked: Value = serde_yaml_ng::from_str(&text).map_err(|e| {
        RunnerError::usage(
            format!("{}: not a reproducibility.lock: {e}", path.display()),
            "run the pipeline again: it writes a new one",
        )
    })?;
    let config = fs::read_to_string(experiment.join("config.yaml")).unwrap_or_default();
    let parsed: Value = serde_yaml_ng::from_str(&config).unwrap_or(Value::Null);
    let seed = parsed.get("seed").and_then(Value::as_u64).unwrap_or(0);
    let mut found = surroundings_lock(store, dir, seed, environment);
    let sums = locked.get("checksums").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in &sums {
        if let Some(sum) = recompute(store, experiment, name, value.as_str().unwrap_or_default()) {
            found.checksums.insert(name.clone(), sum);
        }
    }
    let mut changes = compare(&locked, &serde_json::to_value(&found).unwrap_or(Value::Null));
    changes.extend(check_record(experiment, &config, &sums));
    Ok(changes)
}

/// `config.yaml` against its hash in the record, and outputs of the record that the lock lacks.
fn check_record(experiment: &Path, config: &str, sums: &serde_json::Map<String, Value>) -> Vec<Change> {
    let record = fs::read(experiment.join("experiment.json")).ok();
    let Some(record) = record.and_then(|bytes| serde_json::from_slice::<ExperimentRecord>(&bytes).ok())
    else {
        let found = Some("missing or damaged".to_owned());
        return vec![Change { field: "experiment.json".to_owned(), locked: None, found }];
    };
    let mut changes = Vec::new();
    let hash = sha256_hex(config);
    if record.config_hash != hash {
        let (locked, found) = (Some(record.config_hash), Some(hash));
        changes.push(Change { field: "config.yaml (sha256)".to_owned(), locked, found });
    }
    if sums.is_empty() && record.nodes.iter().any(|n| !n.outputs.is_empty()) {
        changes.push(Change {
            field: "checksums".to_owned(),
            locked: None,
            found: Some("outputs without a checksum".to_owned()),
        });
    }
    changes
}

fn recompute(store: &Store, experiment: &Path, name: &str, locked: &str) -> Option<String> {
    let stages = experiment.join("stages");
    if let Some((_, output)) = NAMED.iter().find(|(field, _)| *field == name) {
        // The lock does not say whose output it was: one of that name must have the sum.
        let mut nodes: Vec<_> =
            fs::read_dir(&stages).into_iter().flatten().flatten().map(|e| e.path()).collect();
        nodes.sort();
        let paths = nodes.into_iter().map(|n| n.join(output)).filter(|p| p.exists());
        let sums: Vec<String> =
            paths.filter_map(|p| sha256_of(store, &p, None)).map(|s| format!("sha256:{s}")).collect();
        return sums.iter().find(|sum| *sum == locked).or(sums.first()).cloned();
    }
    let (node, output) = name.rsplit_once('.')?;
    // A lock may come from anybody: it names no file outside the experiment.
    if name.contains('/') || node.starts_with('.') || output.is_empty() {
        return None;
    }
    store.digest_output(&stages.join(node).join(output)).ok().map(|entry| blake3_field(&entry))
}

fn compare(locked: &Value, found: &Value) -> Vec<Change> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", locked, &mut old);
    flatten("", found, &mut new);
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| Change {
            field: name.clone(),
            locked: old.get(name).cloned(),
            found: new.get(name).cloned(),
        })
        .collect()
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, inner, into);
            }
        }
        Value::String(text) => drop(into.insert(prefix.to_owned(), text.clone())),
        Value::Null => drop(into.insert(prefix.to_owned(), "null".to_owned())),
        other => drop(into.insert(prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_changed_field_is_named() {
        let locked = json!({"rust": "1", "config": {"seed": 42}, "checksums": {"a.b": "x"}});
        let found = json!({"rust": "2", "config": {"seed": 42}, "checksums": {}});
        let fields: Vec<String> = compare(&locked, &found).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["checksums.a.b", "rust"]);
    }
}
