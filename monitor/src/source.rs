//! Finds and reads the trainer's state. The only part that touches files, and it only reads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use record::training::TrainingState;
use thiserror::Error;

#[derive(Debug, Error, Diagnostic)]
pub enum SourceError {
    #[error("{path}: no training_state.json in this experiment yet")]
    #[diagnostic(help(
        "start the run, or check the folder's name; a run writes stages/NAME/live/training_state.json"
    ))]
    NotYet { path: PathBuf },
    #[error("{path}: can't read: {source}")]
    #[diagnostic(help("check the path and its permissions"))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: not a training state: {source}")]
    #[diagnostic(help("the file is damaged or was written by another program"))]
    Damaged { path: PathBuf, source: serde_json::Error },
}

impl SourceError {
    /// Whether waiting may help.
    pub fn may_appear(&self) -> bool {
        matches!(self, Self::NotYet { .. })
    }
}

/// The newest training state below `experiment`: in the folder itself, or in any stage's `live` or `log` folder.
pub fn read(experiment: &Path) -> Result<TrainingState, SourceError> {
    let mut states = Vec::new();
    for path in candidates(experiment) {
        match fs::read_to_string(&path) {
            Ok(text) => match serde_json::from_str::<TrainingState>(&text) {
                Ok(state) => states.push(state),
                Err(source) => return Err(SourceError::Damaged { path, source }),
            },
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SourceError::Unreadable { path, source }),
        }
    }
    let newest = states.into_iter().max_by_key(|state| state.timestamp_ms);
    newest.ok_or_else(|| SourceError::NotYet { path: experiment.to_owned() })
}

fn candidates(experiment: &Path) -> Vec<PathBuf> {
    let mut paths = vec![experiment.join("training_state.json")];
    if let Ok(stages) = fs::read_dir(experiment.join("stages")) {
        let mut stages: Vec<PathBuf> = stages.flatten().map(|e| e.path()).collect();
        stages.sort();
        for stage in stages {
            paths.push(stage.join("live/training_state.json"));
            paths.push(stage.join("log/training_state.json"));
        }
    }
    paths
}
