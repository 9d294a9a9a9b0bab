//! The one error of a command: what, the next step, and the exit code.

use std::fmt;

use miette::Diagnostic;
use record::exit::ExitCode;

use crate::cache::CacheError;
use crate::config::{ConfigError, ConfigErrors};

/// Why a command stopped.
#[derive(Debug)]
pub enum RunnerError {
    /// The pipeline or the command line is wrong; nothing ran.
    Config(Vec<ConfigError>),
    Failed(Failure),
}

/// A sentence, a next step, an exit code.
#[derive(Debug, thiserror::Error)]
pub struct Failure {
    pub code: ExitCode,
    pub message: String,
    pub next: Option<String>,
}

pub type Result<T, E = RunnerError> = std::result::Result<T, E>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.next.as_ref().map(|next| Box::new(next) as Box<dyn fmt::Display>)
    }
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>, next: impl Into<String>) -> Self {
        let next = next.into();
        Self { code, message: message.into(), next: (!next.is_empty()).then_some(next) }
    }
}

impl RunnerError {
    pub fn new(code: ExitCode, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Failed(Failure::new(code, message, next))
    }

    pub fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message, next)
    }

    pub fn interrupted() -> Self {
        Self::new(
            ExitCode::Interrupted,
            "interrupted",
            "run the same command again: finished stages are kept",
        )
    }

    /// A file operation that failed, with the disk-full hint where it applies.
    pub fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        CacheError::io(action, path, source).into()
    }

    pub fn code(&self) -> ExitCode {
        match self {
            Self::Config(_) => ExitCode::Usage,
            Self::Failed(failure) => failure.code,
        }
    }

    /// Every fault with its next step, for output as data.
    pub fn messages(&self) -> Vec<(String, Option<String>)> {
        match self {
            Self::Config(errors) => {
                errors.iter().map(|e| (e.to_string(), e.help_text().map(str::to_owned))).collect()
            }
            Self::Failed(failure) => vec![(failure.message.clone(), failure.next.clone())],
        }
    }

    /// As a person reads it.
    pub fn into_reports(self) -> Vec<miette::Report> {
        match self {
            Self::Config(errors) => errors.into_iter().map(miette::Report::new).collect(),
            Self::Failed(failure) => vec![miette::Report::new(failure)],
        }
    }
}

impl From<ConfigErrors> for RunnerError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors.0)
    }
}

impl From<ConfigError> for RunnerError {
    fn from(error: ConfigError) -> Self {
        Self::Config(vec![error])
    }
}

impl From<CacheError> for RunnerError {
    fn from(error: CacheError) -> Self {
        let code = match &error {
            CacheError::Version { .. } => ExitCode::Usage,
            _ => ExitCode::StageFailed,
        };
        Self::new(code, error.to_string(), error.next_step())
    }
}
