//! The stage protocol: what the runner hands to a stage, and what a stage says of itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Map;

/// Version of the stage protocol; part of every cache key.
pub const PROTOCOL: u32 = 1;
/// The variable that names the request file.
pub const REQUEST_VARIABLE: &str = "TESTFORGE_REQUEST";

/// The file named by [`REQUEST_VARIABLE`]: one execution of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub protocol: u32,
    /// The node's name in the pipeline (`train-cuda-repeat`), not the program's.
    pub stage: String,
    /// The action key, hexadecimal.
    pub key: String,
    /// Absolute path of every input that the pipeline names. An input of `sweep[*].adapter` is a folder with one
    /// entry per instance.
    pub inputs: Map<PathBuf>,
    /// Absolute path that the stage must create for every output. The parent folder exists, the path does not.
    pub outputs: Map<PathBuf>,
    pub params: Map<Value>,
    pub seed: u64,
    pub resources: Resources,
    /// An empty folder that is deleted afterwards.
    pub scratch: PathBuf,
    /// Survives failure and preemption; cleared on success.
    pub checkpoint_dir: PathBuf,
    /// `events.jsonl` and `training_state.json` live here.
    pub live_dir: PathBuf,
    /// Milliseconds since the Unix epoch after which the runner stops the stage.
    pub deadline_ms: Option<u64>,
}

/// What a stage may use. Never part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpus: u32,
    pub memory_mb: u64,
    pub gpus: u32,
}

/// What `STAGE --describe` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub name: String,
    /// The level of the protocol that the program speaks: 2.
    pub protocol: u32,
    /// The program's own version; information only.
    pub version: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// JSON Schema (draft 2020-12) of the parameters, `additionalProperties: false`.
    pub params: Value,
}

/// One input or output of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: String,
    pub description: String,
    pub required: bool,
    /// Wall-clock values: no early cutoff on it, not compared by a verification.
    pub volatile: bool,
}
