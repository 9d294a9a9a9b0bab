//! `report.json` and `gates.json`.

use serde::{Deserialize, Serialize};

use crate::Map;

pub const REPORT_SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema_version: u32,
    /// 26 of them, 100 points.
    pub checks: Vec<Check>,
    pub score: u32,
    pub points_not_tested: u32,
    pub grade: String,
    pub gates: Vec<Gate>,
    pub tiers: Vec<Tier>,
    /// Metric name -> tuned and base side by side.
    pub comparison: Vec<Comparison>,
    pub controls: Option<crate::mutation::Controls>,
    pub hypotheses: Vec<Hypothesis>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub id: String,
    pub points: u32,
    pub claim: String,
    /// The measured value with its unit and its interval, where there is one.
    pub measured: Option<Measured>,
    pub threshold: String,
    pub verdict: CheckVerdict,
    /// Why it was not tested, or what the value means.
    pub detail: String,
    pub evidence: Vec<Evidence>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub value: f64,
    pub unit: String,
    pub interval95: Option<[f64; 2]>,
    pub n: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// `input-name/file`.
    pub path: String,
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckVerdict {
    Corroborated,
    Falsified,
    /// Scores 0.
    NotTested,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    pub id: String,
    pub rule: String,
    pub measured: Option<f64>,
    pub threshold: f64,
    pub verdict: CheckVerdict,
}

/// `gates.json`: the runner reads `passed` alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    pub schema_version: u32,
    /// Every gate corroborated. A gate that was not tested is not passed.
    pub passed: bool,
    pub gates: Vec<Gate>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    pub metric: String,
    pub measured: Option<f64>,
    pub unit: String,
    pub minimum: String,
    pub target: String,
    pub stretch: String,
    /// `stretch`, `target`, `minimum`, `below` or `not tested`.
    pub reached: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub metric: String,
    pub tuned: Option<Measured>,
    pub base: Option<Measured>,
    /// Paired bootstrap over functions: tuned minus base.
    pub difference: Option<Measured>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypothesis {
    pub id: String,
    pub statement: String,
    pub verdict: CheckVerdict,
    pub detail: String,
}

/// `metrics.json`: flat, for comparison between runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub schema_version: u32,
    pub metrics: Map<Measured>,
}
