//! What the runner leaves in an experiment's folder.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const EXPERIMENT_SCHEMA_VERSION: u32 = 1;

/// `experiment.json`: the record of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExperimentRecord {
    pub schema_version: u32,
    pub id: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
    pub git_commit: Option<String>,
    pub git_dirty: Option<bool>,
    /// SHA-256 of config.yaml.
    pub config_hash: String,
    pub profile: Option<String>,
    pub outcome: RunOutcome,
    pub wall_s: f64,
    pub nodes: Vec<NodeRecord>,
    /// `final_loss`, `best_compile_rate`, `training_time_hours`; null where not measured.
    pub metrics: Map<Option<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    Running,
    Succeeded,
    Failed,
    GateNotMet,
    Interrupted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: String,
    /// Hexadecimal; absent when the node was never reached.
    pub key: Option<String>,
    pub state: NodeState,
    pub wall_s: Option<f64>,
    /// Output name -> digest.
    pub outputs: Map<String>,
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    Pending,
    Running,
    /// Served from the cache.
    Hit,
    /// Executed in this run.
    Done,
    Failed,
    /// A producer failed.
    Skipped,
    Interrupted,
}

/// `reproducibility.lock`, YAML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReproducibilityLock {
    pub schema_version: u32,
    pub config: ReproducibilityConfig,
    pub rust: String,
    pub cuda: Option<String>,
    pub cudnn: Option<String>,
    pub torch: Option<String>,
    /// `name version` -> checksum, from Cargo.lock.
    pub dependencies: Map<String>,
    pub hardware: Hardware,
    /// `model`, `dataset`, `adapters` and every node's outputs -> `sha256:...` or `blake3:...`.
    pub checksums: Map<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReproducibilityConfig {
    pub seed: u64,
    pub deterministic_algorithms: bool,
    pub cudnn_benchmark: bool,
    pub cudnn_deterministic: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    pub cpu: String,
    pub gpu: Option<String>,
    pub driver: Option<String>,
}
