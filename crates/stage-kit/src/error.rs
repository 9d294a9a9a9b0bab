//! One error type for stages: what happened, where, and what to do next.

use std::fmt;
use std::io;
use std::path::Path;

use miette::Diagnostic;
use record::exit::ExitCode;

/// Why a stage stopped. Rendered as message, place and next step; its kind decides the exit code.
#[derive(Debug)]
pub struct StageError {
    code: ExitCode,
    message: String,
    place: Option<String>,
    next: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StageError {
    /// The request is wrong: a parameter, a missing input, a device that is not there. Exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// The work can't be done with these inputs on this machine. Exit code 3.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::StageFailed, message)
    }

    /// May succeed later: a rate limit, a dropped connection. Exit code 75.
    pub fn retryable(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Retryable, message)
    }

    /// A fault of this program. Exit code 1.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Internal, message)
            .next("this is a fault of the program: please report it with the command and this text")
    }

    /// Stopped by a signal. Exit code 130.
    pub fn interrupted() -> Self {
        Self::new(ExitCode::Interrupted, "interrupted")
            .next("run the same command again: it goes on from its last checkpoint")
    }

    /// An input/output error on `path` while doing `action` ("read", "create"). Says so when the disk is full.
    pub fn io(action: &str, path: &Path, source: io::Error) -> Self {
        let next = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space on that disk, then run again"
            }
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions of that path",
            _ => "check that disk and path",
        };
        Self::failed(format!("can't {action}: {source}"))
            .at(path.display().to_string())
            .next(next)
            .because(source)
    }

    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), place: None, next: None, source: None }
    }

    /// Where: a file, `file:line`, a parameter's name.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// One next step for whoever reads it.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    pub fn code(&self) -> ExitCode {
        self.code
    }

    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for StageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl Diagnostic for StageError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.next.as_ref().map(|next| Box::new(next) as Box<dyn fmt::Display>)
    }
}
