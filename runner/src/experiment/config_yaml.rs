//! `config.yaml`: the pipeline as it ran, profile and `--set` laid over it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{InputRef, Pipeline, StageConfig};

#[derive(Serialize)]
struct Config<'a> {
    schema_version: u32,
    profile: Option<&'a str>,
    seed: u64,
    gate: Option<String>,
    enforce_gate: bool,
    stages: BTreeMap<&'a str, Stage<'a>>,
}

#[derive(Serialize)]
struct Stage<'a> {
    run: Vec<&'a str>,
    inputs: BTreeMap<&'a str, String>,
    outputs: Vec<&'a str>,
    params: BTreeMap<&'a str, &'a Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    matrix: BTreeMap<&'a str, Vec<&'a Value>>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    env: &'a BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    tools: &'a BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    platform: &'a BTreeMap<String, String>,
    resources: record::protocol::Resources,
    repeat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    protocol: u8,
}

/// The text of `config.yaml`: sorted, without any path of the machine.
pub fn config_yaml(pipeline: &Pipeline) -> String {
    let config = Config {
        schema_version: 1,
        profile: pipeline.profile.as_deref(),
        seed: pipeline.seed,
        gate: pipeline.gate.as_ref().map(|g| format!("{}/{}", g.value.output, g.value.file)),
        enforce_gate: pipeline.enforce_gate,
        stages: pipeline.stages.iter().map(|(name, s)| (name.as_str(), stage(s))).collect(),
    };
    serde_yaml_ng::to_string(&config).unwrap_or_default()
}

fn stage(stage: &StageConfig) -> Stage<'_> {
    let input = |reference: &InputRef| match reference {
        InputRef::File(path) => format!("file:{path}"),
        InputRef::Output(output) => output.to_string(),
    };
    Stage {
        run: stage.run.iter().map(|a| a.value.as_str()).collect(),
        inputs: stage.inputs.iter().map(|(name, i)| (name.as_str(), input(&i.value))).collect(),
        outputs: stage.outputs.keys().map(String::as_str).collect(),
        params: stage.params.iter().map(|(name, p)| (name.as_str(), &p.value)).collect(),
        matrix: stage
            .matrix
            .iter()
            .map(|axis| (axis.param.as_str(), axis.values.iter().map(|(_, v)| v).collect()))
            .collect(),
        env: &stage.env,
        tools: &stage.tools,
        platform: &stage.platform,
        resources: stage.resources,
        repeat: stage.repeat,
        seed: stage.seed,
        protocol: stage.protocol,
    }
}

pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes.as_ref()))
}
