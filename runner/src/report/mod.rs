//! What a person or a program sees of a run.

mod human;
mod json;
mod table;

use record::experiment::{NodeState, RunOutcome};

use crate::exec::{Happening, NodeFailure};

pub use human::Human;
pub use json::Json;
pub use table::table;

/// A node's line of the final summary.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SummaryNode {
    pub name: String,
    pub state: NodeState,
    pub key: Option<String>,
    pub wall_s: Option<f64>,
    pub message: Option<String>,
    pub failure: Option<NodeFailure>,
}

/// How a run ended.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    pub experiment: String,
    pub folder: String,
    pub outcome: RunOutcome,
    pub exit_code: u8,
    pub wall_s: f64,
    pub nodes: Vec<SummaryNode>,
    pub report: Option<String>,
    pub gate: Option<GateSummary>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct GateSummary {
    pub name: String,
    pub passed: bool,
    pub enforced: bool,
    /// Gates that are not corroborated: id and rule.
    pub unmet: Vec<String>,
}

/// The head of a run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Opening {
    pub experiment: String,
    pub folder: String,
    pub profile: Option<String>,
    pub nodes: Vec<String>,
}

pub trait Reporter {
    fn open(&mut self, opening: &Opening);
    fn happened(&mut self, happening: &Happening);
    fn close(&mut self, summary: &Summary);
}

/// `0.3 s`, `12.0 s`, `3 min 20 s`, `2 h 05 min`.
pub fn seconds(s: f64) -> String {
    if s < 60.0 {
        return format!("{s:.1} s");
    }
    let whole = s.round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

pub(crate) fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Pending => "pending",
        NodeState::Running => "running",
        NodeState::Hit => "hit",
        NodeState::Done => "done",
        NodeState::Failed => "FAILED",
        NodeState::Skipped => "skipped",
        NodeState::Interrupted => "interrupted",
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn durations_for_people() {
        assert_eq!(seconds(0.25), "0.2 s");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(seconds(7500.0), "2 h 05 min");
    }
}
