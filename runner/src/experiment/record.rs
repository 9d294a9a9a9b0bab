//! `experiment.json`: kept current while the run lasts, so that another process can watch.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record::compile::CompileResults;
use record::experiment::{EXPERIMENT_SCHEMA_VERSION, ExperimentRecord, NodeRecord, RunOutcome};
use record::training::{TrainingManifest, TrainingMetrics};
use serde::de::DeserializeOwned;

use super::Folder;
use crate::error::{Result, RunnerError};
use crate::exec::NodeResult;
use crate::plan::Graph;

/// Between two records of changes that need not be seen at once.
const INTERVAL: Duration = Duration::from_millis(200);

/// Commit of the pipeline's repository, where it has one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitState {
    pub commit: Option<String>,
    pub dirty: Option<bool>,
}

/// Asks git about the folder; unknown where git or a repository is missing.
pub fn git_state(dir: &Path, environment: &BTreeMap<OsString, OsString>) -> GitState {
    if !dir.ancestors().any(|d| d.join(".git").exists()) {
        return GitState::default();
    }
    let path = environment.get(std::ffi::OsStr::new("PATH")).cloned().unwrap_or_default();
    let Some(git) = std::env::split_paths(&path).map(|d| d.join("git")).find(|p| p.is_file()) else {
        return GitState::default();
    };
    let kept = ["PATH", "HOME"]
        .iter()
        .filter_map(|n| Some((OsString::from(n), environment.get(std::ffi::OsStr::new(n))?.clone())));
    let kept: Vec<(OsString, OsString)> = kept.collect();
    let arguments = ["status", "--porcelain=v2", "--branch", "--untracked-files=no"].map(OsString::from);
    let Ok(text) = crate::resolve::capture(&git, &arguments, dir, &kept, Duration::from_secs(10)) else {
        return GitState::default();
    };
    let commit = text.lines().find_map(|l| l.strip_prefix("# branch.oid ")).filter(|c| *c != "(initial)");
    let dirty = text.lines().any(|l| !l.starts_with('#'));
    GitState { commit: commit.map(str::to_owned), dirty: Some(dirty) }
}

/// Writes the record again whenever something changed.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    record: ExperimentRecord,
    started: Instant,
    written: Option<Instant>,
}

impl RecordWriter {
    pub fn new(folder: &Folder, config_hash: String, profile: Option<String>, git: GitState) -> Self {
        let record = ExperimentRecord {
            schema_version: EXPERIMENT_SCHEMA_VERSION,
            id: folder.id.clone(),
            timestamp: super::timestamp(),
            git_commit: git.commit,
            git_dirty: git.dirty,
            config_hash,
            profile,
            outcome: RunOutcome::Running,
            wall_s: 0.0,
            nodes: Vec::new(),
            metrics: ["final_loss", "best_compile_rate", "training_time_hours"]
                .map(|name| (name.to_owned(), None))
                .into(),
        };
        Self { path: folder.root().join("experiment.json"), record, started: Instant::now(), written: None }
    }

    /// Best effort while the run lasts. What need not be seen at once is written now and then: a thousand hits are not
    /// a thousand files.
    pub fn update(&mut self, graph: &Graph, nodes: &BTreeMap<usize, NodeResult>, at_once: bool) {
        if !at_once && self.written.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        let now: Vec<NodeRecord> =
            nodes.iter().map(|(i, result)| node(&graph.nodes[*i].name, result)).collect();
        if at_once || now != self.record.nodes {
            self.record.nodes = now;
            let _ = self.write();
        }
    }

    /// The final state, with the metrics that the outputs hold.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn finish(
        &mut self,
        folder: &Folder,
        graph: &Graph,
        nodes: &BTreeMap<usize, NodeResult>,
        outcome: RunOutcome,
    ) -> Result<()> {
        self.record.outcome = outcome;
        self.record.nodes = nodes.iter().map(|(i, result)| node(&graph.nodes[*i].name, result)).collect();
        self.record.metrics = metrics(folder, graph, nodes);
        self.write().map_err(|e| RunnerError::io("write", &self.path, e))
    }

    fn write(&mut self) -> std::io::Result<()> {
        self.record.wall_s = (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let mut text = serde_json::to_string_pretty(&self.record).unwrap_or_default();
        text.push('\n');
        let temporary = self.path.with_extension("json.tmp");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

fn node(name: &str, result: &NodeResult) -> NodeRecord {
    let outputs =
        result.entry.iter().flat_map(|e| &e.outputs).map(|(name, entry)| (name.clone(), entry.to_string()));
    NodeRecord {
        name: name.to_owned(),
        key: result.key.clone(),
        state: result.state,
        wall_s: result.wall_s,
        outputs: outputs.collect(),
        message: result.message.clone(),
    }
}

/// What requirement R-04 names, as far as it was measured. Every output of every node is looked through.
fn metrics(
    folder: &Folder,
    graph: &Graph,
    nodes: &BTreeMap<usize, NodeResult>,
) -> BTreeMap<String, Option<f64>> {
    let mut final_loss = None;
    let mut hours: Option<f64> = None;
    let mut best_rate: Option<f64> = None;
    for (i, result) in nodes {
        for output in result.entry.iter().flat_map(|e| e.outputs.keys()) {
            let dir = folder.node_dir(&graph.nodes[*i].name).join(output);
            // Later nodes train on what earlier ones trained: the last loss is the run's.
            if let Some(manifest) = read::<TrainingManifest>(&dir.join("manifest.json")) {
                final_loss = Some(manifest.final_train_loss);
            }
            if let Some(metrics) = read::<TrainingMetrics>(&dir.join("metrics.json")) {
                hours = Some(hours.unwrap_or(0.0) + metrics.wall_s / 3600.0);
            }
            if let Some(rate) =
                read::<CompileResults>(&dir.join("compile_results.json")).and_then(|r| first_sample_rate(&r))
            {
                best_rate = Some(best_rate.map_or(rate, |best| best.max(rate)));
            }
        }
    }
    [("final_loss", final_loss), ("best_compile_rate", best_rate), ("training_time_hours", hours)]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// Share of functions whose first sample type-checks.
fn first_sample_rate(results: &CompileResults) -> Option<f64> {
    let first: Vec<bool> = results
        .samples
        .iter()
        .filter(|s| s.sample_idx == 0 && s.round == 0)
        .map(|s| s.type_checks == Some(true))
        .collect();
    let good = first.iter().filter(|compiles| **compiles).count();
    (!first.is_empty()).then(|| good as f64 / first.len() as f64)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
