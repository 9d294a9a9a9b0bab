//! Running things: the build step, stages in their process groups, the scheduler.

mod build;
mod events;
mod guard;
mod node;
mod output;
mod process;
mod resources;
mod scheduler;
mod secrets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use build::{BuildNeed, build_need, run_build};
pub use events::EventTail;
pub use guard::{Guard, guard_main};
pub use resources::{Machine, Pool};
pub use scheduler::{NodeResult, RunOptions, RunResult, run};

use crate::error::RunnerError;

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

/// Counts SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, the second skips the grace period.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    count: Arc<AtomicUsize>,
}

impl Cancellation {
    /// Starts to listen.
    ///
    /// # Errors
    /// The system refuses signal handlers.
    pub fn listen() -> Result<Self, RunnerError> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let cancellation = Self::default();
        let count = Arc::clone(&cancellation.count);
        let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]);
        let mut signals = signals.map_err(|e| {
            let message = format!("can't listen for signals: {e}");
            RunnerError::new(record::exit::ExitCode::Internal, message, "")
        })?;
        std::thread::spawn(move || {
            for _ in signals.forever() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(cancellation)
    }

    pub fn asked(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    pub fn urgent(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 1
    }
}
