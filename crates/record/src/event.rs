//! Lines of `live/events.jsonl`. They never enter a key. A reader ignores a kind that it does not know and a torn last line.

use serde::{Deserialize, Serialize};

use crate::Map;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    #[serde(rename = "event")]
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Progress {
        done: u64,
        total: Option<u64>,
        unit: String,
    },
    Metric {
        name: String,
        value: f64,
        unit: String,
        step: Option<u64>,
    },
    Log {
        message: String,
    },
    Warning {
        message: String,
    },
    Artifact {
        name: String,
        path: String,
    },
    /// One optimizer step of a trainer.
    Step(crate::training::StepRecord),
    /// Anything else that a stage wants seen, by name.
    Note {
        name: String,
        fields: Map<serde_json::Value>,
    },
}
