//! Running things: the build step, stages in their process groups, the scheduler.

mod build;
mod events;
mod guard;
mod inputs;
mod node;
mod output;
mod process;
mod resources;
mod scheduler;
mod secrets;

pub use build::{BuildNeed, build_need, run_build};
pub use events::EventTail;
pub use guard::{Guard, guard_main};
pub use resources::{Machine, Pool};
pub use scheduler::{NodeResult, RunOptions, RunResult, run};

pub use crate::interrupt::Cancellation;

/// What happens during a run, in order. Everything that a person or a program is shown comes from these.
#[derive(Debug, Clone)]
pub enum Happening {
    Hit {
        node: String,
        key: String,
        saved_s: f64,
    },
    Start {
        node: String,
        key: String,
        reasons: Vec<String>,
    },
    Progress {
        node: String,
        done: u64,
        total: Option<u64>,
        unit: String,
    },
    /// One optimizer step or a log line of a stage.
    Note {
        node: String,
        text: String,
    },
    Warning {
        node: Option<String>,
        text: String,
    },
    Retry {
        node: String,
        attempt: u32,
        wait_s: f64,
    },
    Done {
        node: String,
        wall_s: f64,
    },
    Failed {
        node: String,
        failure: NodeFailure,
    },
    Skipped {
        node: String,
        because: String,
    },
    Interrupted {
        node: String,
    },
}

/// Why a node failed, and where to look.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeFailure {
    pub message: String,
    pub log: Option<String>,
    /// The log's last lines.
    pub tail: Vec<String>,
    pub next: String,
}
